"""Documents do not point at what is not there: links, paths in code font, commands and targets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from click.testing import CliRunner

from bursar.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
WANTED = {
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/vocabulary.md",
    "docs/protocol.md",
    "docs/decisions/README.md",
}
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*?) *$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    yield from re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)
    yield from re.findall(r"^\[[^\]]+\]: *(\S+)", text, flags=re.MULTILINE)


def test_the_pages_that_a_newcomer_reads_are_there() -> None:
    assert {page_name(page) for page in PAGES} >= WANTED


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / unquote(place)).resolve() if place else page
        assert target.exists(), f"{page_name(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{page_name(page)} links out of the repository: {link}"
        if anchor and target.suffix == ".md":
            assert unquote(anchor) in anchors(target), f"{page_name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_in_code_font_exist(page: Path) -> None:
    """`master/bursar/master/ledger.py` in prose is checked; patterns and placeholders are not."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    tops = "core|master|agent|frameworks|cli|simulation|proto|tests|deploy|docs|scripts"
    for path in re.findall(rf"`((?:{tops})/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{page_name(page)} speaks of {path}"


# --- Commands ---


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `bursar` of every line `$ bursar …` in a fence, and of every `bursar …` in code font."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.findall(text):
        for line in re.findall(r"^\$ (?:\S*/)?bursar +(.*)$", fence, flags=re.MULTILINE):
            yield line.split()
    for line in re.findall(r"`bursar ([^`\n]+)`", FENCE.sub("", text)):
        yield line.split()


@cache
def options_of(path: tuple[str, ...]) -> frozenset[str]:
    """Options in the help of a command, or of the one it is a verb of."""
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0, done.output
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.output))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        command: click.Command = cli
        path: list[str] = []
        rest = list(words)
        while rest and rest[0].startswith("--"):  # options of `bursar` itself, such as --master HOST:PORT
            rest = rest[1:] if "=" in rest[0] or rest[0] in ("--help", "--version") else rest[2:]
        while isinstance(command, click.Group) and rest and re.fullmatch(r"[a-z-]+", rest[0]):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, f"{page_name(page)}: there is no `bursar {' '.join([*path, rest[0]])}`"
            command = found
            path.append(rest.pop(0))
        for word in rest:
            if word == "--" or word in ("|", ">", "#", "&&"):
                break
            option = word.partition("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", option):
                assert option in options_of(tuple(path)), (
                    f"{page_name(page)}: `bursar {' '.join(words)}` has no {option}"
                )


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", text)) | set(re.findall(r"^\$? ?make ([a-z]+)", text, flags=re.MULTILINE))
    assert named <= targets, f"{page_name(page)} speaks of make {sorted(named - targets)}"


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE)) - {"help"}
    assert targets == set(re.findall(r"@echo 'make ([a-z]+) ", makefile))
