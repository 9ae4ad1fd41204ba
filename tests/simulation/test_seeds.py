"""Kept seeds, and fresh ones: the cluster under faults, then at rest."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bursar.simulation.world import simulate

#: Processor time for fresh seeds; at least one is always run.
FRESH_SECONDS = 8
FRESH_STEPS = 1_500


def kept() -> list[tuple[int, int]]:
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    return [(int(word[0]), int(word[1])) for word in words if word]


@pytest.mark.parametrize(("seed", "steps"), kept())
def test_kept_seed(seed: int, steps: int) -> None:
    summary = simulate(seed, steps)
    assert summary.steps >= steps and summary.tasks > 0


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    base = int.from_bytes(os.urandom(4), "big")
    with capsys.disabled():
        print(f" fresh seeds from {base}: ", end="", flush=True)
    began, seed = time.process_time(), base
    while seed == base or time.process_time() - began < FRESH_SECONDS:
        simulate(seed, FRESH_STEPS)
        seed += 1
    with capsys.disabled():
        print(f"{seed - base} ", end="")


def test_every_rule_is_judged() -> None:
    """Rules that no world ever comes near would prove nothing."""
    judged: set[str] = set()
    for seed in (1, 2, 9, 15):
        judged |= simulate(seed, 2_500).verdicts.keys()
    assert judged >= {
        "one container per GPU",
        "one end per task",
        "a call has one result",
        "nothing is visible before it is durable",
        "a status is in the checkpoint before it is sent",
        "a launch is in the checkpoint before it is begun",
        "an offer is permitted and of free things",
        "no forbidden offer stands",
        "quiet means that a full cycle makes no offer",
        "a refusal changes nothing",
        "generations never go back",
        "a successor knows what was known",
        "a task is handed over after that is in the checkpoint",
        "an executor's update is in the checkpoint before it is acknowledged",
        "no task outlives its executor",
        "a step of cutting is in the checkpoint before it is done",
        "a card is cut while nobody has any of it",
        "a task is begun on what its card is cut into",
        "a cut that is said to be done is done",
        "no card is offered that is cut otherwise, or more of it than there is",
    }
