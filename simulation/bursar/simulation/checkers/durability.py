"""What a master lets out: only what is durable."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bursar.core.ids import AgentId, FrameworkId, Generation
from bursar.core.messages import operator as op
from bursar.core.messages.agent import AcknowledgeUpdates, DesiredState, Registered
from bursar.core.messages.framework import LookupResults, Offers, StatusUpdates, Subscribed
from bursar.core.messages.offers import CallResult
from bursar.core.tasks import StatusReason
from bursar.master.records import Durable
from bursar.simulation.checkers.verdicts import Judge, require


class DurabilityJudge(Judge):
    """Of the master's words to agents, frameworks and operators."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        self._told_generations: dict[AgentId, Generation] = {}

    def said(self, peer: AgentId | FrameworkId | None, message: Any, durable: Durable) -> None:
        """A message leaves: what it tells must be committed."""
        match message:
            case DesiredState():
                assert peer is not None
                self._judge_desired(AgentId(peer), message, durable)
            case AcknowledgeUpdates(updates):
                for update in updates:
                    task = durable.tasks.get((update.framework_id, update.task_id))
                    require(
                        task is None
                        or task.end is None
                        or task.end_acknowledged
                        or task.end.update_id != update.update_id,
                        f"the end of {update.task_id} is acknowledged to its agent before the registry knows that it is known",
                    )
            case Registered():
                self._durable(peer in durable.agents, f"agent {peer} is let in")
            case Subscribed(framework_id):
                known = framework_id in durable.frameworks or framework_id in durable.removed_frameworks
                self._durable(known, f"framework {framework_id} is subscribed")
            case CallResult(call_id, unknown, error) if error is None and not unknown:
                self._judge_result(peer, call_id, durable)
            case LookupResults(results):
                for result in results:
                    if not result.unknown:
                        self._judge_result(peer, result.call_id, durable)
            case StatusUpdates(statuses):
                for status in statuses:
                    entry = durable.tasks.get((status.framework_id, status.task_id))
                    if status.state.is_terminal and entry is not None:
                        self._durable(entry.end is not None, f"the end of {status.task_id} is told")
            case Offers(_, offers):
                for offer in offers:
                    self._durable(offer.agent_id in durable.agents, f"{offer.offer_id} of {offer.agent_id} is made")

    def answered(self, answer: Any, durable: Durable) -> None:
        """An operator is told: what was changed must be committed."""
        match answer:
            case op.SetFlagResponse(flag):
                self._durable(flag.name in durable.flags, f"the flag {flag.name} is said to be set")
            case op.TeardownFrameworkResponse(framework):
                gone = framework.info.framework_id in durable.removed_frameworks
                self._durable(gone, f"framework {framework.info.framework_id} is said to be torn down")

    def _judge_result(self, peer: AgentId | FrameworkId | None, call_id: str, durable: Durable) -> None:
        framework_id = FrameworkId(str(peer))
        known = (framework_id, call_id) in durable.calls or framework_id in durable.removed_frameworks
        # The oldest are forgotten.
        forgotten = len(durable.calls) >= 1000
        self._durable(known or forgotten, f"call {call_id} of {peer} is answered")

    def _judge_desired(self, agent_id: AgentId, message: DesiredState, durable: Durable) -> None:
        before = self._told_generations.get(agent_id, Generation())
        require(
            message.generation >= before,
            f"{agent_id} is told generation {message.generation} after {before}: generations never go back",
        )
        self._told_generations[agent_id] = message.generation
        for task in message.launch:
            entry = durable.tasks.get((task.framework_id, task.spec.task_id))
            self._durable(entry is not None and entry.task == task, f"{task.spec.task_id} is launched")
        for kill in message.kill:
            entry = durable.tasks.get((kill.framework_id, kill.task_id))
            if entry is None:
                removed = kill.framework_id in durable.removed_frameworks
                self._durable(removed, f"{kill.task_id}, a task that nobody knows, is killed")
            else:
                reason = entry.kill_reason is not StatusReason.UNSPECIFIED or entry.end is not None
                self._durable(reason, f"{kill.task_id} is killed for a reason")

    def _durable(self, holds: bool, what: str) -> None:
        self._judged("nothing is visible before it is durable")
        require(holds, f"visible before durable: {what}, and the registry does not know")
