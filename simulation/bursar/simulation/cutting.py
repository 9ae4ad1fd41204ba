"""The hands of an agent on the cards of its machine: each look and each step takes its time, may fail, and may be the last of this life."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from bursar.agent.devices.cutting import CannotCut, Step
from bursar.agent.events import CardCut, CardLookedAt
from bursar.core.ids import DeviceUuid
from bursar.simulation.devices import SimulatedGpus
from bursar.simulation.faults import Faults
from bursar.simulation.timeline import Timeline

Post = Callable[[Any], None]


class SimulatedCutter:
    """Of one machine; survives agents. `post` is the inbox of whom an answer is for: one of the dead hears nothing."""

    def __init__(
        self,
        timeline: Timeline,
        random: Random,
        gpus: SimulatedGpus,
        faults: Callable[[], Faults],
        is_held: Callable[[DeviceUuid], bool],
        die: Callable[[Post], None],
    ) -> None:
        """`is_held`: whether a container has some of a card; `die`: kills the agent of that inbox, if it lives."""
        self._timeline = timeline
        self._random = random
        self._gpus = gpus
        self._faults = faults
        self._is_held = is_held
        self._die = die
        #: Steps that were asked for and are not done.
        self._begun: list[tuple[DeviceUuid, Step, Post]] = []

    def look_at(self, card: DeviceUuid, post: Post) -> None:
        """Answer with what a card has."""
        self._after(post, self._look, card, post)

    def cut(self, card: DeviceUuid, step: Step, post: Post) -> None:
        """Do a step."""
        work = (card, step, post)
        self._begun.append(work)
        self._after(post, self._finish, work)

    def meddle(self, card: DeviceUuid) -> None:
        """Somebody takes an instance away by other means, maybe, between the last step and the look at what came of it."""
        chance, parts = self._faults().cut_meddling_chance, self._gpus.cards[card].parts
        if chance and parts and self._random.random() < chance:
            del parts[self._random.choice(sorted(parts))]
            self._gpus.troubles[card] += 1

    def agent_died(self) -> None:
        """The driver carries out what it was asked for, or never heard of it."""
        begun, self._begun = self._begun, []
        for card, step, _ in begun:
            if self._random.random() < 0.5:
                self._do(card, step)

    # --- inside ---

    def _after(self, post: Post, act: Callable[..., None], *arguments: Any) -> None:
        faults = self._faults()
        if self._random.random() < faults.agent_death_in_cut_chance:
            self._timeline.after(self._random.randint(0, faults.cut_ms), self._die, post)
        self._timeline.after(self._random.randint(0, faults.cut_ms), act, *arguments)

    def _look(self, card: DeviceUuid, post: Post) -> None:
        if self._gpus.is_away(card) or self._random.random() < self._faults().cut_failure_chance / 4:
            post(CardLookedAt(card, None, "GPU is lost"))
        else:
            post(CardLookedAt(card, self._gpus.cards[card].layout(), ""))

    def _finish(self, work: tuple[DeviceUuid, Step, Post]) -> None:
        if work in self._begun:
            self._begun.remove(work)
            card, step, post = work
            post(CardCut(card, step, self._do(card, step)))

    def _do(self, card: DeviceUuid, step: Step) -> str:
        """What went wrong, or nothing."""
        faults = self._faults()
        if self._gpus.is_away(card) or self._random.random() < faults.cut_failure_chance:
            return "GPU is lost"
        try:
            self._gpus.cards[card].cut(
                step,
                in_use=self._is_held(card) or self._gpus.is_used(card),
                needs_restart=self._random.random() < faults.cut_pending_chance,
            )
        except CannotCut as error:
            return str(error)
        return ""
