"""An operator who looks, reserves, toggles, kills and tears down at random, and repeats what got no answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bursar.core.errors import ErrorDetail
from bursar.core.messages import operator as op
from bursar.core.messages.rules import RuleMode
from bursar.core.resources import ResourceRequest
from bursar.simulation.checkers.rule_book import RULE_BOOK

if TYPE_CHECKING:
    from bursar.simulation.world import World

#: Values to set flags to, good and bad.
FLAG_VALUES = {
    "filter-gpu-resources": ("true", "false", "strip", "true", "false", "maybe"),
    "gpu-headroom": ("50%", "0%", "cpus:0.5", "cpus:1;mem:1GiB", "200%"),
    "allocation-interval": ("1s", "200ms", "5s", "-1s"),
    "offer-timeout": ("30s", "2s", "100ms"),
    "preemption-notice": ("0s", "500ms", "10s", "-1s"),
    "agent-ping-timeout": ("1s", "5s"),
    "max-agent-ping-timeouts": ("2", "5", "0"),
    "fair-sharing-excluded-resource-names": ("", "cpus", "gpus,mem", "a b"),
    "listen": ("127.0.0.1:1",),
    "no-such-flag": ("1",),
}
#: Into what to cut a card, good and bad.
LAYOUTS = (
    "whole",
    "whole",
    "1g.10gb=3",
    "1g.10gb=7",
    "2g.20gb=2,1g.10gb=2",
    "3g.40gb,1g.10gb=2",
    "4g.40gb,3g.40gb",
    "7g.80gb",
    "2g.20gb=5",
    "9g.99gb",
    "quarters",
)


class Operator:
    """Sends one request at a time."""

    name = "operator"

    def __init__(self, world: World, roles: tuple[str, ...]) -> None:
        self._world = world
        self._roles = roles
        self._random = world.stream_of(self.name)
        self._sequence = 0
        #: The first answer to each request that changes something.
        self._answers: dict[str, op.OperatorResponse] = {}
        #: Reservations that were made: what to undo.
        self._kept: list[tuple[str, str, ResourceRequest]] = []
        #: Names of rules that were added, or were to be.
        self._rules: list[str] = []

    def act(self) -> None:
        """Do something."""
        request = self._choose()
        self._world.note(self.name, request)
        self._send(request, 0)

    def lend_everything(self) -> None:
        """Lend what is kept for any role, as far as there is anything."""
        for role in self._roles:
            self._send(op.LendReservationsRequest(self._id(), "", role), 0)

    def cut_a_card(self) -> None:
        """Have some card cut."""
        request = self._about_cards()
        self._world.note(self.name, request)
        self._send(request, 0)

    def about_volumes(self) -> None:
        """Reserve disk, make a volume of it, destroy one, or look."""
        random = self._random
        agent, role = random.choice(self._world.agents).name, random.choice(self._roles)
        volume_id, size = random.choice(("a", "b", "c", "no/name")), random.choice((1, 2, 8)) << 30
        request: op.OperatorRequest
        match random.randrange(5):
            case 0:
                request = op.ReserveResourcesRequest(self._id(), agent, role, ResourceRequest({"disk": size}))
            case 1 | 2:
                request = op.CreateVolumeRequest(self._id(), agent, role, volume_id, size)
            case 3:
                request = op.DestroyVolumeRequest(self._id(), agent, role, volume_id)
            case _:
                request = op.ListVolumesRequest(op.Page(random.choice((0, 1))))
        self._world.note(self.name, request)
        self._send(request, 0)

    # --- inside ---

    def _send(self, request: op.OperatorRequest, tries: int) -> None:
        world = self._world
        world.timeline.after(world.network.delay_ms(), world.master.ask, request, partial(self._hear, request, tries))

    def _hear(self, request: op.OperatorRequest, tries: int, answer: op.OperatorResponse | ErrorDetail | None) -> None:
        """An answer, or none; either may be followed by the same request again."""
        world, random = self._world, self._random
        request_id = getattr(request, "request_id", "")
        world.checkers.cuts.answered(request, answer)
        lost = answer is None or random.random() < world.faults.operator_repeats_chance
        if request_id and answer is not None and not isinstance(answer, ErrorDetail):
            first = self._answers.setdefault(request_id, answer)
            assert first == answer, f"{request_id} was answered with {first!r}, and later with {answer!r}"
            if isinstance(request, op.ReserveResourcesRequest) and not lost:
                self._kept.append((request.agent, request.role, request.resources))
        if lost and request_id and tries < 5:
            world.timeline.after(random.randint(10, 3_000), self._send, request, tries + 1)

    def _id(self) -> str:
        self._sequence += 1
        return f"request-{self._sequence}"

    def _choose(self) -> op.OperatorRequest:
        random, world = self._random, self._world
        agent = random.choice(world.agents).name
        role = random.choice(self._roles)
        match random.randrange(19):
            case 0 | 1:
                gpus = random.randint(0, 2)
                scalars = {} if gpus and random.random() < 0.5 else {"cpus": random.choice((100, 1_000, 1_500))}
                named = random.choice(world.agents).gpus.there[:2] if random.random() < 0.2 else []
                request = ResourceRequest(scalars, (), 0 if named else gpus, tuple(named))
                labels = {"why": "simulation"} if random.random() < 0.2 else {}
                lend = random.random() < 0.3
                return op.ReserveResourcesRequest(self._id(), agent, role, request, labels, lend=lend)
            case 2 | 3:
                if self._kept and random.random() < 0.8:
                    kept = self._kept.pop(random.randrange(len(self._kept)))
                    return op.UnreserveResourcesRequest(self._id(), *kept)
                return op.UnreserveResourcesRequest(self._id(), agent, role, ResourceRequest({"cpus": 100}, (), 1))
            case 4 | 5:
                name = random.choice(list(FLAG_VALUES))
                if random.random() < 0.5:
                    name = "filter-gpu-resources"
                return op.SetFlagRequest(self._id(), name, random.choice(FLAG_VALUES[name]))
            case 6:
                return op.UnsetFlagRequest(self._id(), random.choice(list(FLAG_VALUES)))
            case 7:
                tasks = [f"{framework}/{task}" for framework, task in world.live_tasks()]
                if random.random() < 0.5:
                    return op.RestartTaskRequest(self._id(), random.choice(tasks) if tasks else "none", 0)
                return op.KillTaskRequest(
                    self._id(), random.choice(tasks) if tasks else "none", random.choice((None, 0))
                )
            case 12 | 13:
                return self._share_out(role)
            case 14:
                uuids = random.choice(world.agents).gpus.there
                chosen = tuple(random.sample(uuids, min(len(uuids), random.randint(1, 2))))
                if random.random() < 0.4:
                    return op.CordonDevicesRequest(chosen, "simulation", self._id())
                return op.UncordonDevicesRequest(chosen, self._id())
            case 15 | 16:
                everywhere, withdraw = random.random() < 0.5, random.random() < 0.3
                return op.LendReservationsRequest(self._id(), "" if everywhere else agent, role, withdraw=withdraw)
            case 17:
                return self._about_images(agent)
            case 18:
                return self._rebind()
            case 8 if random.random() < 0.1:
                return op.TeardownFrameworkRequest(self._id(), random.choice(world.frameworks).framework_id)
            case 9 | 10:
                return self._choose_rule()
            case _:
                return self._look(agent)

    def _rebind(self) -> op.OperatorRequest:
        """Have some reservation keep another device, or one less."""
        random = self._random
        uuids = [uuid for agent in self._world.agents for uuid in agent.gpus.there]
        device = random.choice(uuids) if uuids else "none"
        to = random.choice(uuids) if uuids and random.random() < 0.2 else ""
        give_up, dry_run = random.random() < 0.2, random.random() < 0.1
        return op.RebindReservationRequest(self._id(), device, to, give_up, dry_run)

    def _about_images(self, agent: str) -> op.OperatorRequest:
        """Have an image pulled, here or everywhere; or no more."""
        random = self._random
        what = random.random()
        if what < 0.2:
            return op.ListImagesRequest()
        if what < 0.4:
            pulls = sorted(self._world.pulls())
            return op.CancelImagePullRequest(random.choice(pulls) if pulls else "none", self._id())
        image = random.choice(("small:1", "large:1", "large:2", "an image; with a shell"))
        if random.random() < 0.3:
            return op.PullImageRequest(
                image, where=random.choice(("gpus>=1", "hostname=nobody")), request_id=self._id()
            )
        everywhere = random.random() < 0.5
        return op.PullImageRequest(image, () if everywhere else (agent,), "", everywhere, self._id())

    def _about_cards(self) -> op.OperatorRequest:
        """Have a card cut, or made whole; or ask for what is no layout, or fits on none."""
        random = self._random
        agents = self._world.agents
        idle = [card for agent in agents for card in agent.gpus.uuids if not agent.holds(card)]
        uuids = idle if idle and random.random() < 0.8 else random.choice(agents).gpus.uuids
        return op.PartitionDeviceRequest(random.choice(uuids) if uuids else "none", random.choice(LAYOUTS), self._id())

    def _choose_rule(self) -> op.OperatorRequest:
        random, world = self._random, self._world
        words = random.choice(list(RULE_BOOK.values()))
        if self._rules and random.random() < 0.5:
            return op.RemoveRuleRequest(random.choice(self._rules), self._id())
        name = f"{words.rule.name}.{random.randrange(3)}"
        mode = RuleMode.AUDIT if random.random() < 0.2 else RuleMode.ENFORCE
        expires_at_ms = world.wall_ms + random.randint(-100, 60_000) if random.random() < 0.3 else 0
        rule = replace(words.rule, name=name, mode=mode, expires_at_ms=expires_at_ms, reason="simulation")
        before = random.choice([*self._rules, "", "nowhere"])
        self._rules = [*self._rules[-5:], name]
        force, instead = random.random() < 0.5, random.random() < 0.5
        return op.AddRuleRequest(rule, before, instead, force, self._id())

    def _share_out(self, role: str) -> op.OperatorRequest:
        """Another weight, or another quota: small enough to matter, often gone again."""
        random = self._random
        if random.random() < 0.3:
            place = role if random.random() < 0.8 else f"{role}/."
            return op.SetWeightsRequest(self._id(), (op.RoleWeight(place, random.choice((1, 500, 1000, 3000))),))
        quotas = []
        for one in sorted({role, random.choice((*self._roles, "*"))}):
            kind = random.choice(("gpus", "cpus"))
            least, most = sorted(random.choice((1_000, 2_000, 4_000)) for _ in range(2))
            guarantees = {kind: least} if random.random() < 0.4 else {}
            limits = {kind: most} if random.random() < 0.6 else {}
            quotas.append(op.Quota(one, guarantees, limits))
        return op.SetQuotasRequest(self._id(), tuple(quotas), random.random() < 0.5)

    def lift_quotas(self) -> None:
        """Most often remove all quotas when faults stop: then all work must be done that there is room for."""
        if self._random.random() < 0.8:
            for role in (*self._roles, "*"):
                self._send(op.SetQuotasRequest(self._id(), (op.Quota(role),)), 0)

    def _look(self, agent: str) -> op.OperatorRequest:
        random, world = self._random, self._world
        framework = random.choice(world.frameworks).framework_id
        page = op.Page(random.choice((0, 1, 3)))
        looks: tuple[op.OperatorRequest, ...] = (
            op.GetMasterRequest(),
            op.ListAgentsRequest(page),
            op.GetAgentRequest(agent),
            op.ListFrameworksRequest(page),
            op.GetFrameworkRequest(framework),
            op.ListRolesRequest(page),
            op.ListOffersRequest(page),
            op.ListTasksRequest(
                page, random.random() < 0.5, random.choice(("", framework)), roles=random.choice(("", "*"))
            ),
            op.ListDevicesRequest(page, random.choice(("", agent))),
            op.ListReservationsRequest(page),
            op.ListQuotasRequest(page),
            op.ListWeightsRequest(page),
            op.ListFlagsRequest(page),
            op.GetFlagRequest("filter_gpu_resources"),
            op.ExplainFrameworkRequest(framework),
            op.ExplainFrameworkRequest(framework, agent),
            op.ExplainAgentRequest(agent),
            op.ExplainRoleRequest(random.choice(self._roles)),
            op.ListRulesRequest(page),
            op.TryRulesRequest(random.choice(("", framework)), random.choice(("", agent)), page),
            op.AuditRulesRequest(),
        )
        return random.choice(looks)
