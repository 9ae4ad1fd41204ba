"""The listings of docs/writing-a-framework.md are run against `bursar dev`, and print what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[2] / "docs" / "writing-a-framework.md").read_text(encoding="utf-8")
LISTINGS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
CONSOLES = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
#: Program → what is printed, in the order of the page.
RUNS = [run for text in CONSOLES for run in re.findall(r"^\$ python (\S+)\n((?:(?!\$).*\n)*)", text, re.MULTILINE)]


def test_every_listing_is_a_program_whose_output_is_shown() -> None:
    assert {program for program, _ in RUNS} == LISTINGS.keys()
    assert len(LISTINGS) == TEXT.count("```python") and all(expected for _, expected in RUNS)


def test_the_listings_print_what_the_page_says(programs: Any, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    dev = programs.start(
        programs.program("bursar"), "dev", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", TMPDIR=str(temporary)
    )
    found = re.search(r"master (\S+),", dev.until_stdout("\n"))
    assert found is not None
    for program, code in LISTINGS.items():
        (tmp_path / program).write_text(code, encoding="utf-8")
    for program, expected in RUNS:
        # In a directory of its own, where it may keep a file.
        command = f"cd '{tmp_path}' && exec '{sys.executable}' {program}"
        done = programs.run("sh", "-c", command, BURSAR_MASTER=found[1])
        assert (done.code, done.stdout) == (0, expected), (program, done)
    dev.signal(15)
    assert dev.finish().code in (0, 143)
