"""How far a batch is, with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bursar.cli.progress import Bar, Lines, words_of
from bursar.frameworks.batch import Batch, Ended, from_template
from bursar.sdk import Status, TaskState


def batch_of(count: int) -> Batch:
    return Batch(from_template(["true"], count), name="folds")


def end(batch: Batch, state: TaskState) -> None:
    batch.ended.append(Ended(len(batch.ended), Status(state), 1, 0, 0, "node"))


def test_a_line_now_and_then_and_only_with_news(capsys: pytest.CaptureFixture[str]) -> None:
    batch, now = batch_of(3), [0.0]
    with Lines(batch, lambda: now[0]) as lines:
        end(batch, TaskState.FINISHED)
        lines.show()
        assert capsys.readouterr().err == "", "too early"
        now[0] = 10.0
        lines.show()
        assert capsys.readouterr().err == "bursar: 1 of 3 ended\n"
        now[0] = 30.0
        lines.show()
        assert capsys.readouterr().err == "", "nothing new"
        end(batch, TaskState.FAILED)
        batch.retried = 2
        lines.show()
        lines.say("job 1: exited with 1")
    assert capsys.readouterr().err == "bursar: 2 of 3 ended, 1 failed, 2 retried\nbursar: job 1: exited with 1\n"


def test_a_bar_on_a_terminal_with_lines_above_it() -> None:
    batch, screen = batch_of(4), io.StringIO()
    with Bar(batch, Console(file=screen, force_terminal=True, width=100)) as bar:
        end(batch, TaskState.FINISHED)
        end(batch, TaskState.FAILED)
        batch.pausing = 1
        bar.show()
        bar.say("job 1: [red]exited[/red] with 1")
    shown = screen.getvalue()
    assert "folds" in shown and "2/4" in shown and "1 pausing, 1 failed" in shown
    assert "bursar: job 1: [red]exited[/red] with 1" in shown, "what others say is no markup"


def test_what_there_is_none_of_is_left_out() -> None:
    assert words_of(batch_of(1)) == ""
