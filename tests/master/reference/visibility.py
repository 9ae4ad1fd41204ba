"""What a client may see of an agent: rules, the GPU filter, what is kept for GPUs, regions (design.md §6; GPU-3, M-06, M-08)."""

from __future__ import annotations

from collections.abc import Collection

from bursar.core.devices import DeviceHealth
from bursar.core.messages.rules import RuleAction
from bursar.core.predicates import AgentFacts, matches_all, parse_predicates
from bursar.core.resources import EMPTY, Holding, Resources, Stack, sum_resources
from bursar.core.text import parse_resources

from .cluster import Agent, Framework, Rule, add
from .shares import Shares


class Visibility(Shares):
    """Who may see what."""

    def deciding_rule(self, framework: Framework, role: str, agent: Agent) -> Rule | None:
        """The first rule that speaks of both; the last of all is the flag: agents that have a GPU are hidden from frameworks without
        the capability (GPU-3), or only their GPUs (M-06), or nothing is.
        """
        rules = [rule for rule in self.rules.values() if rule.enforced]
        if self.gpu_filter != "false":
            hide = self.gpu_filter == "true"
            action = RuleAction.HIDE_AGENT if hide else RuleAction.STRIP
            rules.append(Rule(action, lambda framework, _: not framework.capable, "gpus>0", () if hide else ("gpus",)))
        whole = sum_resources(agent.buckets.values())
        devices = tuple(agent.devices[uuid] for uuid in sorted(whole.devices))
        facts = AgentFacts(agent.hostname, agent.attributes, whole.amounts(), devices)
        for rule in rules:
            has_any = any(whole.amount(kind) for kind in rule.kinds) or not rule.kinds
            if rule.speaks_of(framework, role) and has_any and matches_all(parse_predicates(rule.agents), facts):
                return rule
        return None

    def is_hidden(self, framework: Framework, role: str, agent: Agent) -> bool:
        """Whether nothing of an agent may be offered: a rule hides it, or it is in another region than the master, where both say
        where they are, and the framework does not understand that (FD-3).
        """
        rule = self.deciding_rule(framework, role, agent)
        near = self.region in ("", agent.attributes.get("region", self.region))
        return (rule is not None and rule.action is RuleAction.HIDE_AGENT) or not (framework.travels or near)

    def stripped_kinds(self, framework: Framework, role: str, agent: Agent) -> tuple[str, ...]:
        """What a rule takes out of offers; GPUs, unless it says something else."""
        rule = self.deciding_rule(framework, role, agent)
        return (rule.kinds or ("gpus",)) if rule is not None and rule.action is RuleAction.STRIP else ()

    def shown(
        self, framework: Framework, role: str, agent: Agent, offerable: Holding, free: Holding
    ) -> dict[Stack, Resources]:
        """What a rule leaves that strips, or keeps headroom for GPUs: the kinds that it takes away are not shown, and of CPUs,
        memory and the like so much is kept as the agent's GPUs need, but not for those that would be in the offer. A rule that
        strips something else than GPUs keeps headroom only if it says how much.
        """
        rule = self.deciding_rule(framework, role, agent)
        if rule is None or rule.action not in (RuleAction.STRIP, RuleAction.HEADROOM):
            return dict(offerable)
        gone = self.stripped_kinds(framework, role, agent)
        rest = {
            stack: Resources(
                {kind: amount for kind, amount in part.scalars.items() if kind not in gone},
                () if "ports" in gone else part.ports,
                frozenset() if "gpus" in gone else part.devices,
            )
            for stack, part in offerable.items()
        }
        if rule.action is RuleAction.HEADROOM or "gpus" in gone or rule.headroom:
            uses_gpus = not framework.version or any(
                count and shape.role == role and shape.resources.gpu_count
                for shape, count in zip(framework.shapes, self.open(framework), strict=True)
            )
            going = sum_resources(rest.values()).devices if uses_gpus else frozenset()
            kept = self.kept_for_gpus(agent, rule.headroom or self.headroom, free, going)
            rest = {stack: part.minus_saturating(kept.get(stack, EMPTY)) for stack, part in rest.items()}
        return {stack: part for stack, part in rest.items() if part}

    def kept_for_gpus(
        self, agent: Agent, headroom: str, free: Holding, going: Collection[str]
    ) -> dict[Stack, Resources]:
        """M-06: for each healthy GPU, busy or idle, what it is to have less what its holder has, from the GPU's bucket first, then
        from what is unreserved. A share is one of the agent's total, divided by its GPUs.
        """
        whole = sum_resources(agent.buckets.values())
        if headroom.endswith("%"):
            per_gpu = {
                kind: whole.amount(kind) * int(headroom[:-1]) // (100 * max(1, len(whole.devices)))
                for kind in ("cpus", "mem")
            }
        else:
            per_gpu = {item.kind: item.amount for item in parse_resources(headroom)}
        healthy = {uuid for uuid, device in agent.devices.items() if device.health is not DeviceHealth.UNHEALTHY}
        busy: set[str] = set()
        missing: dict[Stack, dict[str, int]] = {}
        for holder in (*self.offers, *self.tasks):
            if holder.agent_id == agent.agent_id:
                held = sum_resources(holder.holding.values())
                busy |= held.devices
                by_bucket = {stack: len(part.devices & healthy) for stack, part in holder.holding.items()}
                count = sum(by_bucket.values())
                for kind, each in per_gpu.items():
                    lacks, left = max(0, each * count - held.amount(kind)), count
                    for stack, there in by_bucket.items():
                        if there:
                            part = -(-lacks * there // left)
                            add(missing.setdefault(stack, {}), {kind: part})
                            lacks, left = lacks - part, left - there
        for stack, bucket in agent.buckets.items():
            idle = len((bucket.devices & healthy) - busy - set(going))
            add(missing.setdefault(stack, {}), {kind: each * idle for kind, each in per_gpu.items()})
        kept: dict[Stack, Resources] = {}
        elsewhere = missing.pop((), {})
        for stack, amounts in missing.items():
            there = free.get(stack, EMPTY).scalars
            found = {kind: min(amount, there.get(kind, 0)) for kind, amount in amounts.items()}
            kept[stack] = Resources({kind: amount for kind, amount in found.items() if amount})
            add(elsewhere, {kind: amount - found[kind] for kind, amount in amounts.items()})
        there = free.get((), EMPTY).scalars
        found = {kind: min(amount, there.get(kind, 0)) for kind, amount in elsewhere.items()}
        kept[()] = Resources({kind: amount for kind, amount in found.items() if amount})
        return kept
