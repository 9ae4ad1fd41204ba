"""Scripts: what is read as what, mistakes named before anything is carried out, transcripts as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.main import run
from bursar.cli.scenarios import CommandLine
from bursar.core.errors import InvalidText
from bursar.simulation.scenario import Entry, ScriptError, Transcript, run_script
from bursar.simulation.scenario.outcomes import shorten
from bursar.simulation.scenario.words import split_words

START = "agent add a1 cpus:4;mem:8GiB;gpus:2\nframework add f1 roles ml capabilities GPU_RESOURCES\n"


def play(text: str) -> Transcript:
    return run_script(text, "x.txt", CommandLine())


def last(text: str) -> list[str]:
    """What the last command caused."""
    return play(text).entries[-1].lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  a  b ", ["a", "b"]),
        ("a # b", ["a"]),
        ("a#b", ["a#b"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("'(ml/** | eng) & !ml/x' y", ["(ml/** | eng) & !ml/x", "y"]),
        ('gpus("a b"):1;cpus:2 z', ['gpus("a b"):1;cpus:2', "z"]),
        ("''", [""]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize("text", ["'a", 'gpus("a:1', "'a'b"])
def test_words_that_are_none(text: str) -> None:
    with pytest.raises(InvalidText):
        split_words(text)


def test_devices_are_shown_as_runs() -> None:
    assert shorten(["gpu0", "gpu1", "gpu2", "gpu9", "gpu10", "x"]) == "gpu0-2,gpu9-10,x"
    assert shorten([]) == ""


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("agnt add a2 cpus:1", "did you mean agent?"),
        ("agent ad a2 cpus:1", "has no command 'ad'"),
        ("agent ad a2 cpus:1", "in a scenario activate, add, break"),
        ("agent add", "the name of the agent is missing"),
        ("agent add a2", "resources is missing"),
        ("agent add a2 cpus:x", "'x' is not a number"),
        ("agent add a1 cpus:1", "the agent 'a1' is there already"),
        ("agent add a/b cpus:1", "must not contain"),
        ("agent add a2 cpus:1 colour blue", "'colour' is not expected here"),
        ("agent add a2 gpus:2 cliques 2,2", "a2 has 2 GPUs"),
        ("agent add a2 gpus:2 unhealthy 2", "a2 has 2 GPUs"),
        ("agent add a2 gpus:2 gone 0,2", "a2 has 2 GPUs"),
        ("agent deactivate a2", "no agent 'a2' was added above"),
        ("agent deactivate a1 now", "'now' is not expected here"),
        ("framework add f2 roles a//b", "must not contain '//'"),
        ("framework add f2 demand 'ml 2x'", "has no value"),
        ("framework add f2 labels a", "is not NAME=VALUE"),
        ("framework add f2 takes cpus:1 for 0s", "no time at all"),
        ("use f1 a1 cpus:1", "the name of the task is missing"),
        ("use f1 a1 cpus:1 as t1,t1", "already"),
        ("use f1 a1 gpus(ml):1 as t1", "names a role"),
        ("use f1 a1 cpus:1 as t1 refuse often", "is not a duration"),
        ("recover t9", "no task 't9' was added above"),
        ("decline f1 a2", "'a2' is not expected here"),
        ("demand f1", "what it wants is missing"),
        ("demand f1 '99999999999x cpus:1'", "too many"),
        ("framework reserve f1 a1 cpus:1", "the role is missing"),
        ("advance", "DURATION"),
        ("advance 2d", "longer than 1d"),
        ("cycle half", "no verb"),
        ("show nothing", "'nothing' is not expected here"),
        ("master nonsense 1", "no flag 'nonsense'"),
        ("bursar", "no verb"),
        ("run -- true", "is not for scenarios"),
        ("simulate --seed 1", "is not for scenarios"),
        ("flag", "not complete"),
        ("flag sett x y", "has no command 'sett'"),
        ("flag set filter-gpu-resources", "Missing argument"),
        ("reserve --agent a1 --colour blue", "No such option"),
        ("master offer-timeout 1s", "the master runs already"),
        ("use f1 a1 'cpus:1 as t1", "never closed"),
        ("advance 1s \\", "nothing follows"),
    ],
)
def test_a_mistake_names_file_line_what_and_what_to_do(line: str, what: str) -> None:
    with pytest.raises(ScriptError) as caught:
        play(f"{START}\n# prose\n{line}")
    detail = caught.value.detail
    assert detail.message.startswith("x.txt, line 5: ")
    assert what in str(caught.value)
    assert detail.hint


def test_a_transcript_needs_a_command_above_it() -> None:
    with pytest.raises(ScriptError, match="line 2"):
        play("# prose\n> offer 1\n")


def test_what_an_operator_is_refused_is_part_of_the_transcript() -> None:
    assert last(f"{START}flag set offer-timeout soon") == [
        "refused: offer-timeout: 'soon' is not a duration (write a number and a unit, such as 500ms, 1s, 10m or 2h)"
    ]
    assert last(f"{START}reserve --agent nobody --role ml --resources gpus:1")[0].startswith(
        "refused: there is no agent"
    )
    # One that the command line refuses by itself, before it asks.
    assert last(f"{START}bursar reserve --agent a1 --role ml --resources gpus:x")[0].startswith("refused: gpus: 'x'")


def test_what_cannot_be_done_as_things_are_is_part_of_the_transcript() -> None:
    assert last(f"{START}decline f1\ndecline f1")[0].startswith("refused: f1 holds no offer")
    assert last(f"{START}use f1 a1 cpus:1 as t1\nrecover t1\nrecover t1")[0].startswith("refused: t1 does not run")
    assert last(f"{START}use f1 a1 cpus:99 as t1")[0].startswith("refused: task 't1' asks for more")


def test_what_only_asks_is_printed() -> None:
    assert last(f"{START}role ls")[0].startswith("ROLE")
    assert last(f"{START}flag get offer-timeout -o name") == ["offer-timeout"]


def test_writing_it_again_keeps_prose_and_form() -> None:
    source = "# top\n\nagent add a1 \\\n  cpus:4  # four\n  > nonsense\n> more\n\n# end\n"
    transcript = play(source)
    assert transcript.text() == "# top\n\nagent add a1 \\\n  cpus:4  # four\n  > agent a1 is active\n\n# end\n"
    again = play(transcript.text())
    assert again.difference() == ""
    assert again.text() == transcript.text()


def test_every_difference_is_found() -> None:
    good = play(START).text()
    assert not play(good).differing()
    for index, line in enumerate(good.splitlines()):
        if line.startswith("  >"):
            lines = good.splitlines()
            changed = [*lines[:index], f"{line}x", *lines[index + 1 :]]
            left_out = [*lines[:index], *lines[index + 1 :]]
            added = [*lines[: index + 1], "  > and more", *lines[index + 1 :]]
            for other in (changed, left_out, added):
                (entry,) = play("\n".join(other)).differing()
                assert entry.line in (1, 2, 3, 4)


def test_what_happens_later_than_its_command_says_when() -> None:
    assert last(f"master offer-timeout 10s\n{START}advance 1m")[0].startswith(
        "at 10s: offer 1 to f1 for ml is rescinded"
    )
    assert (
        last(f"{START}use f1 a1 cpus:4;mem:8GiB;gpus:2 as t1 for 90s\nadvance 2m")[0] == "at 90s: t1 of f1 has finished"
    )


def test_the_same_script_gives_the_same_transcript() -> None:
    text = (
        START + "agent add a2 cpus:8;gpus:4\nframework add f2 roles eng takes cpus:1 for 7s\nadvance 1m\nshow shares\n"
    )
    assert play(text).as_data() == play(text).as_data()


def test_the_data_is_a_contract() -> None:
    transcript = play(START + "use f1 a1 cpus:1;gpus:1 as t1 refuse 1h\ndecline f1\nrecover t1\n")
    data = transcript.as_data()
    assert json.loads(json.dumps(data)) == data
    assert data["scenario"] == "x.txt"
    assert [sorted(command) for command in data["commands"]] == [["at_ms", "command", "line", "outcomes"]] * 5
    everything: list[dict[str, Any]] = [outcome for command in data["commands"] for outcome in command["outcomes"]]
    fields = [
        "agent",
        "at_ms",
        "framework",
        "hint",
        "kind",
        "message",
        "offer",
        "reason",
        "resources",
        "role",
        "task",
        "text",
    ]
    assert all(sorted(outcome) == fields for outcome in everything)
    offer = next(outcome for outcome in everything if outcome["kind"] == "offer")
    assert offer == {
        "kind": "offer",
        "at_ms": 0,
        "text": "offer 1 to f1 for ml: a1 cpus:4;mem:8GiB;gpus:2 [gpu0-1]",
        "offer": 1,
        "framework": "f1",
        "role": "ml",
        "agent": "a1",
        "task": None,
        "resources": [
            {"reserved_to": [], "amounts": "cpus:4;mem:8GiB;gpus:2", "devices": ["a1-gpu0", "a1-gpu1"]},
        ],
        "reason": None,
        "message": None,
        "hint": None,
    }
    kinds = {outcome["kind"] for outcome in everything}
    assert kinds == {"event", "offer", "task", "no_offer", "refused"}
    (refusal,) = [outcome for outcome in everything if outcome["kind"] == "refused"]
    assert refusal["reason"] == "NOT_FOUND"
    assert refusal["hint"]


# --- the command line ---


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "try.txt"
    path.write_text(START, encoding="utf-8")
    return path


def test_the_script_is_printed_with_its_transcript(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--scenario", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed == play(START).text()
    assert file.read_text(encoding="utf-8") == START, "nothing was written"


def test_checking_and_updating(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--scenario", str(file), "--check"]) == 1
    heard = capsys.readouterr()
    assert "+  > agent a1 is active" in heard.out
    assert "2 of 2 commands" in heard.err
    assert "--update" in heard.err
    assert run(["simulate", "--scenario", str(file), "--update"]) == 0
    assert run(["simulate", "--scenario", str(file), "--check"]) == 0
    assert capsys.readouterr().out == ""


def test_several_scripts_as_data(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--scenario", str(file), "--scenario", str(file), "-o", "json"]) == 0
    one, other = json.loads(capsys.readouterr().out)
    assert one == other
    assert one["scenario"] == "try.txt"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--check"], "are for --scenario"),
        (["-o", "json"], "are for --scenario"),
        (["--scenario", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--scenario", "nowhere.txt", "--check", "--update"], "give one of them"),
    ],
)
def test_wrong_usage(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_mistake_is_wrong_usage(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("agent add a1 cpus:x\n", encoding="utf-8")
    assert run(["simulate", "--scenario", str(file)]) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    assert heard.err.startswith("error: try.txt, line 1: ")
    assert "hint: " in heard.err


def test_entries_know_their_lines() -> None:
    pieces = play("# a\nshow time\n").pieces
    assert pieces[0] == "# a"
    assert isinstance(pieces[1], Entry)
    assert pieces[1].line == 2
