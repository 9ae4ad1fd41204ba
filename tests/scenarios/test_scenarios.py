"""One script per rule of the allocator, against the real machine of a master: what the file says is what happens.

`bursar simulate --scenario tests/scenarios/NAME.txt --check` shows a difference, `--update` writes it – after you have read it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bursar.cli.scenarios import CommandLine
from bursar.simulation.scenario import Transcript, run_script
from bursar.simulation.scenario.verbs import usages

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


def run(file: Path) -> Transcript:
    return run_script(file.read_text(encoding="utf-8"), file.name, CommandLine())


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_what_the_script_says_is_what_happens(file: Path) -> None:
    transcript = run(file)
    assert transcript.difference() == ""
    assert transcript.text() == file.read_text(encoding="utf-8"), "write it with --update"


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_the_script_says_which_rule_it_shows_and_shows_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# Rule: "), "the first line says which rule"
    assert any(line.startswith(("  > offer", "  > bundle")) for line in text.splitlines()), (
        "a rule of offers, and no offer"
    )
    transcript = run(file)
    for entry in transcript.entries:
        if entry.expected:
            said = entry.expected.pop()
            assert entry in transcript.differing(), f"{said!r} could be left out, and nobody would notice"


def examples() -> list[tuple[str, str]]:
    """Scripts in the pages, each with the name of its page: blocks that are marked as ```scenario."""
    root = Path(__file__).parents[2]
    return [
        (page.name, block)
        for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]
        for block in re.findall(r"^```scenario\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]


def test_there_is_a_worked_example() -> None:
    assert "scenarios.md" in {page for page, _ in examples()}


@pytest.mark.parametrize(("page", "script"), examples(), ids=lambda value: value if value.endswith(".md") else "")
def test_examples_in_the_pages_were_run(page: str, script: str) -> None:
    assert run_script(script, page, CommandLine()).difference() == ""
    assert "  > " in script


def test_the_page_names_every_verb() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    for usage in usages():
        words = [word for word in usage.split()[:2] if word.isalpha() and word.islower()]
        assert " ".join(words) in page or f"`{words[-1]}`" in page, usage
