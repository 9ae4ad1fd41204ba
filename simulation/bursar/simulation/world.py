"""The world: a cluster built from a seed, run under faults and then without, judged at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bursar.agent.devices.health import DeviceSignal, Remedy, Severity
from bursar.core.ids import AgentId, FrameworkId, OfferId
from bursar.core.messages.operator import AgentState, FrameworkState
from bursar.core.resources import ResourceRequest
from bursar.simulation.agents import AgentNode
from bursar.simulation.checkers import Checkers, Violation
from bursar.simulation.checkers.cuts import uncut
from bursar.simulation.checkers.rest import has_room, unsettled
from bursar.simulation.checkers.volumes import unsettled_volumes
from bursar.simulation.devices import SimulatedGpus
from bursar.simulation.draws import draw_flags, patience_ms
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import (
    GIB,
    ROLES,
    Feeding,
    Flapping,
    Greedy,
    Hog,
    Keeping,
    Liar,
    RawFramework,
    Reserving,
    Silent,
)
from bursar.simulation.losses import Losses
from bursar.simulation.master import MasterNode
from bursar.simulation.network import Network
from bursar.simulation.operator import Operator
from bursar.simulation.process import WALL_EPOCH_MS
from bursar.simulation.registry import SimulatedRegistry, Twin
from bursar.simulation.sessions import SessionFramework
from bursar.simulation.timeline import Timeline
from bursar.simulation.trace import Trace

#: Simulated time that everything has to come right once faults have stopped; and that it must stay so.
CONVERGENCE_MS = 45 * 60_000
REST_MS = 30_000

Framework = RawFramework | SessionFramework


class SimulationFailure(Exception):
    """A seed failed. Says which, at which step, why, what came before, and how to see it again."""

    def __init__(self, world: World, cause: BaseException, steps: int) -> None:
        why = f"{type(cause).__name__}: {cause}" if str(cause) else f"{type(cause).__name__} at {_place(cause)}"
        self.seed, self.step = world.seed, world.steps
        text = [
            f"seed {world.seed} failed at step {world.steps}, {world.now_ms / 1000:.3f} s into the world",
            "what happened last:",
            *world.trace.lines(),
            f"cluster: {world.shown()}",
            f"faults: {world.drawn_faults.shown() or 'none'}",
            f"why: {why}",
            f"replay: bursar simulate --seed {world.seed} --steps {steps} --verbose",
        ]
        super().__init__("\n".join(text))


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "an unknown place" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


@dataclass(slots=True)
class Summary:
    """What a run came to."""

    seed: int
    steps: int
    simulated_ms: int
    digest: str
    tasks: int
    #: rule → how often it was judged.
    verdicts: dict[str, int] = field(default_factory=dict)


class World:
    """One cluster. Make one, add agents and frameworks or `populate` it, then `run`."""

    def __init__(
        self,
        seed: int,
        *,
        faults: Faults | None = None,
        flags: dict[str, str] | None = None,
        exact_trace: bool = False,
        thorough: bool = False,
        twin: Twin | None = None,
    ) -> None:
        self.seed = seed
        random = self.stream_of("world")
        self.drawn_faults = self.faults = Faults.draw(random) if faults is None else faults
        self.timeline = Timeline()
        self.trace = Trace(exact=exact_trace)
        self.network = Network(self.timeline, self.stream_of("network"), self.faults)
        self.flags = draw_flags(random) if flags is None else flags
        self.checkers = Checkers(filter_gpu_resources=self.flags.get("filter_gpu_resources", "true"), thorough=thorough)
        self.cluster_id = "simulated-cluster"
        self.master = MasterNode(self, SimulatedRegistry(self.cluster_id, twin), self.flags)
        self.agents: list[AgentNode] = []
        self.frameworks: list[Framework] = []
        self.operator = Operator(self, ROLES[1:])
        self.losses = Losses(self)
        #: Steps of all machines so far.
        self.steps = 0
        #: Faults have stopped, and frameworks want nothing new.
        self.calm = False
        self._random = self.stream_of("faults")

    # --- what others ask of it ---

    def stream_of(self, name: str) -> Random:
        """A source of randomness of its own, so that one part's choices do not disturb another's."""
        return Random(f"{self.seed}/{name}")

    @property
    def now_ms(self) -> int:
        """Since the world began."""
        return self.timeline.now_ms

    @property
    def wall_ms(self) -> int:
        """True wall time."""
        return WALL_EPOCH_MS + self.timeline.now_ms

    def note(self, who: str, what: Any, outcome: Sequence[Any] = ()) -> None:
        """Write a line of the trace."""
        self.trace.note(self.timeline.now_ms, who, what, outcome)

    def stepped(self) -> None:
        """A machine made a step."""
        self.steps += 1

    def framework_lives(self, framework_id: FrameworkId) -> bool:
        """Whether the registry knows a framework that was not removed."""
        return framework_id in self.master.registry.durable.frameworks

    def any_offer_id(self, random: Random) -> OfferId:
        """An outstanding offer, whoever it was made to; what a spy would know."""
        machine = self.master.machine
        offers = list(machine.cluster.offers) if machine is not None else []
        return random.choice(offers) if offers else OfferId("0-O0")

    def live_tasks(self) -> list[tuple[str, str]]:
        """Tasks that have not ended, as an operator sees them."""
        machine = self.master.machine
        return sorted(machine.cluster.tasks) if machine is not None else []

    def pulls(self) -> list[str]:
        """Pulls of images that the master knows of."""
        machine = self.master.machine
        return list(machine.cluster.images.orders) if machine is not None else []

    def shown(self) -> str:
        """The cluster in a few words."""
        agents = ", ".join(f"{agent.name} ({len(agent.gpus.uuids)} GPUs)" for agent in self.agents)
        frameworks = ", ".join(
            f"{framework.name} ({type(framework).__name__}, {'/'.join(framework.roles)})"
            for framework in self.frameworks
        )
        flags = ", ".join(f"{name}={value}" for name, value in self.flags.items())
        return f"{agents}; {frameworks}; {flags or 'default flags'}"

    # --- building ---

    def add_agent(
        self,
        gpus: int,
        *,
        cpus: int = 8_000,
        mem_bytes: int = 32 * GIB,
        static: tuple[str, int] | None = None,
        runtime: str = "process",
        finished_limit: int = 10_000,
        disk_bytes: int = 0,
    ) -> AgentNode:
        """A machine."""
        name = f"agent-{len(self.agents) + 1}"
        devices = SimulatedGpus(AgentId(name), gpus, cpus, mem_bytes, static, disk_bytes)
        agent = AgentNode(self, name, devices, runtime, finished_limit)
        self.agents.append(agent)
        return agent

    def add_framework(self, kind: type[RawFramework], *roles: str, gpus: bool = True, **options: Any) -> RawFramework:
        """A framework that speaks the contract by hand."""
        name = f"{kind.__name__.lower()}-{len(self.frameworks) + 1}"
        options.setdefault("failover_timeout_ms", 60_000)
        framework = kind(self, name, roles or ("*",), gpus=gpus, **options)
        self.frameworks.append(framework)
        return framework

    def add_session(
        self, role: str, request: ResourceRequest, count: int, *, gpus: bool = True, **options: Any
    ) -> SessionFramework:
        """A framework written with the SDK."""
        name = f"session-{len(self.frameworks) + 1}"
        options.setdefault("failover_timeout_ms", 60_000)
        framework = SessionFramework(self, name, role, request, count, gpus=gpus, **options)
        self.frameworks.append(framework)
        return framework

    def populate(self) -> None:
        """A small cluster out of the seed, with at least one agent with GPUs and one without."""
        random = self.stream_of("cluster")
        if random.random() < 0.5:
            self.timeline.after(2_000, self.operator.lend_everything)
        for index in range(random.randint(2, 5)):
            gpus = (random.choice((2, 4, 8)), 0)[index] if index < 2 else random.choice((0, 1, 2, 4))
            static = (random.choice(ROLES[1:]), random.randint(0, gpus)) if random.random() < 0.3 else None
            agent = self.add_agent(
                gpus,
                cpus=random.choice((1_000, 4_000, 16_000)),
                mem_bytes=random.choice((1, 16)) * GIB,
                static=static,
                runtime=random.choice(("process", "docker")),
                finished_limit=random.choice((20, 10_000)),
                disk_bytes=64 * GIB,
            )
            for card in agent.gpus.uuids if random.random() < 0.3 else ():
                if random.random() < 0.5:
                    agent.gpus.cards[card].cut_into(
                        random.choice(("1g.10gb=3", "3g.40gb=2", "4g.40gb,2g.20gb,1g.10gb"))
                    )
        self.add_framework(Greedy, random.choice(ROLES), gpus=False, failover_timeout_ms=patience_ms(random))
        kinds = (Greedy, Greedy, Hog, Reserving, Reserving, Silent, Flapping, Liar, Liar)
        for _ in range(random.randint(1, 4)):
            roles = tuple(random.sample(ROLES, random.choice((1, 1, 2))))
            self.add_framework(
                random.choice(kinds),
                *roles,
                gpus=random.random() < 0.8,
                borrows=random.random() < 0.5,
                failover_timeout_ms=patience_ms(random),
                acknowledges=random.choice((1.0, 1.0, 0.5)),
            )
        for _ in range(random.randint(1, 2)):
            gpus = random.choice((0, 1, 2))
            scalars = {"cpus": random.choice((10, 500, 1_000)), "mem": random.choice((1 << 20, GIB // 4))}
            self.add_session(
                random.choice(ROLES),
                ResourceRequest(scalars, (), gpus),
                random.randint(1, 30),
                gpus=gpus > 0 or random.random() < 0.5,
                failover_timeout_ms=patience_ms(random),
                states_demand=random.random() < 0.8,
            )
        for _ in range(random.choice((0, 1, 1, 2))):
            role, gpus = random.choice(ROLES), random.random() < 0.8
            self.add_framework(Feeding, role, gpus=gpus, failover_timeout_ms=patience_ms(random))
        if random.random() < 0.6:
            self.add_framework(Keeping, random.choice(ROLES[1:]), failover_timeout_ms=patience_ms(random))

    # --- running ---

    def start(self) -> None:
        """Start everything, within a few moments and in no particular order."""
        for node in (self.master, *self.agents, *self.frameworks):
            self.timeline.after(self._random.randint(0, 50), node.start)
        faults = self.faults
        self._plague(faults.master_crashes_per_minute, self.master.die)
        self._plague(faults.stream_breaks_per_minute, self._break_stream)
        self._plague(faults.partitions_per_minute, self._partition)
        self._plague(faults.agent_crashes_per_minute, lambda: self._some_agent().die())
        self._plague(faults.reboots_per_minute, lambda: self._some_agent().reboot())
        self._plague(faults.stalls_per_minute, self._stall)
        self._plague(faults.container_losses_per_minute, self._lose_container)
        self._plague(faults.device_failures_per_minute, self._fail_device)
        self._plague(faults.strangers_per_minute, self._intrude)
        self._plague(faults.framework_crashes_per_minute, self._kill_framework)
        self._plague(faults.operator_acts_per_minute, self.operator.act)
        self._plague(faults.cuts_per_minute, self.operator.cut_a_card)
        self._plague(faults.losses_per_minute, self.losses.strike)
        self._plague(faults.access_losses_per_minute, lambda: self._some_agent().lose_access())
        self._plague(faults.volume_acts_per_minute, self.operator.about_volumes)
        self._plague(faults.volume_losses_per_minute, lambda: self._some_agent().volumes.lose_one())
        self._plague(faults.overuses_per_minute, lambda: self._some_agent().shares.strike(self.faults.linger_ms))

    def run(self, steps: int, *, converge: bool = True) -> Summary:
        """Run under faults for so many steps, then until everything has converged. Raises SimulationFailure."""
        try:
            self.start()
            while self.steps < steps:
                self.timeline.advance()
            if converge:
                self.stop_faults()
                self.converge()
        except Exception as error:
            raise SimulationFailure(self, error, steps) from error
        return self.summary()

    def run_for(self, duration_ms: int) -> None:
        """Run for so long. Raises SimulationFailure."""
        try:
            self._advance_until(self.now_ms + duration_ms)
        except Exception as error:
            raise SimulationFailure(self, error, self.steps) from error

    def summary(self) -> Summary:
        """What it came to so far."""
        launched = len(self.checkers.agents.begun)
        return Summary(
            self.seed,
            self.steps,
            self.now_ms,
            self.trace.digest(),
            launched,
            dict(sorted(self.checkers.verdicts.items())),
        )

    def stop_faults(self) -> None:
        """From now on nothing goes wrong, and nobody wants anything new."""
        self.note("world", "faults stop")
        self.calm = True
        self.faults = Faults(commit_ms=self.faults.commit_ms, start_ms=self.faults.start_ms)
        self.network.faults = self.faults
        self.network.heal()
        for agent in self.agents:
            agent.containers.faults = self.faults
            for uuid in agent.gpus.uuids:
                agent.gpus.mend(uuid)
            agent.gpus.desert()
            agent.look_at_devices()
        self.operator.lift_quotas()

    def converge(self) -> None:
        """Wait until everything is right and stays so for a while. Raises Violation where it does not come to that."""
        until = self.now_ms + CONVERGENCE_MS
        settled_at: int | None = None
        while settled_at is None or self.now_ms < settled_at + REST_MS:
            if wrong := self.unsettled():
                settled_at = None
                if self.now_ms >= until:
                    seconds = CONVERGENCE_MS // 1000
                    raise Violation(f"not converged {seconds} s after the last fault: {'; '.join(wrong[:10])}")
            elif settled_at is None:
                settled_at = self.now_ms
            self._advance_until(self.now_ms + 500)
        self.note("world", "converged")

    def unsettled(self) -> list[str]:
        """What is not right yet."""
        machine, process = self.master.machine, self.master.process
        if machine is None or process is None:
            return ["the master is down"]
        wrong: list[str] = []
        for agent in self.agents:
            own = agent.machine
            if own is None or not own.registered:
                wrong.append(f"{agent.name} is not registered{f': {own.refusal}' if own else ''}")
                continue
            known = machine.cluster.agents.get(agent.agent_id)
            if known is None or known.state is not AgentState.ACTIVE:
                wrong.append(f"{agent.name} is not active")
            wrong += agent.shares.unsettled()
            if known is not None:
                wrong += unsettled_volumes(known, agent.volumes.data)
        for framework in self.frameworks:
            entry = machine.cluster.frameworks.get(framework.framework_id)
            if entry is None or entry.state is not FrameworkState.ACTIVE:
                wrong.append(f"{framework.name} is not subscribed")
            if isinstance(framework, RawFramework) and framework.pending:
                wrong.append(f"{framework.name} waits for the results of {list(framework.pending)[:3]}")
            if isinstance(framework, SessionFramework):
                wrong += self._unserved(framework)
        for agent in self.agents:
            if not wrong and agent.machine is not None:
                wrong += uncut(machine, agent.machine, agent.gpus.there)
        if wrong:
            return wrong
        machines = {
            agent.agent_id: (agent.machine, agent.containers.live) for agent in self.agents if agent.machine is not None
        }
        return unsettled(
            self.checkers.frameworks.books, machine, machines, [item.framework_id for item in self.frameworks]
        )

    # --- inside ---

    def _unserved(self, framework: SessionFramework) -> list[str]:
        """Work that is not done although some agent has room for it."""
        if framework.running:
            return [f"{framework.name} waits for {sorted(framework.running)[:3]}"]
        if not framework.todo:
            return []
        room = [agent.name for agent in self.agents if has_room(self.checkers.master.facts, agent.agent_id, framework)]
        return [f"{framework.name} has {framework.todo} tasks to start, and {room} could take one"] if room else []

    def _advance_until(self, at_ms: int) -> None:
        timeline = self.timeline
        while True:
            due = timeline.next_ms()
            if due is None or due > at_ms:
                break
            timeline.advance()
        timeline.now_ms = at_ms

    def _plague(self, per_minute: float, act: Any) -> None:
        """Let something happen again and again until faults stop."""
        if per_minute <= 0:
            return

        def strike() -> None:
            if not self.calm:
                act()
                again()

        def again() -> None:
            self.timeline.after(int(self._random.expovariate(per_minute / 60_000)), strike)

        again()

    def _some_agent(self) -> AgentNode:
        return self._random.choice(self.agents)

    def _break_stream(self) -> None:
        streams = list(self.network.streams.values())
        if streams:
            stream = self._random.choice(streams)
            self.note(stream.host, "its stream breaks")
            stream.break_off()

    def _partition(self) -> None:
        host = self._random.choice([*self.agents, *self.frameworks]).name
        for_ms = self._random.randint(1, self.faults.partition_ms)
        self.note(host, f"is cut off for {for_ms} ms")
        self.network.cut_off(host, for_ms, self._random.random() < 0.5)

    def _stall(self) -> None:
        nodes: list[MasterNode | AgentNode] = [self.master, *self.agents]
        node = self._random.choice(nodes)
        if node.process is not None:
            for_ms = self._random.randint(1, self.faults.stall_ms)
            self.note(node.name, f"stands still for {for_ms} ms")
            node.process.stall(for_ms, self._random.random() < 0.7)

    def _lose_container(self) -> None:
        agent = self._some_agent()
        if live := agent.containers.live:
            container = self._random.choice(live)
            self.note(agent.name, f"loses {container.container_id}")
            agent.containers.lose(container.container_id)

    def _fail_device(self) -> None:
        agent = self._some_agent()
        if agent.gpus.uuids:
            uuid = self._random.choice(agent.gpus.uuids)
            if self._random.random() < 0.4:
                severity = self._random.choice(
                    (Severity.NOTED, Severity.SUSPICIOUS, Severity.SUSPICIOUS, Severity.FATAL)
                )
                self.note(agent.name, f"the driver of {uuid} says something {severity.name.lower()}")
                remedy = self._random.choice((Remedy.NONE, Remedy.RESET))
                agent.signal_device(DeviceSignal(uuid, severity, "something", remedy))
                self.timeline.after(self._random.randint(1, self.faults.device_away_ms), agent.look_at_devices)
                return
            vanish = self._random.random() < 0.4
            self.note(agent.name, f"{uuid} {'vanishes' if vanish else 'falls ill'}")
            agent.gpus.fail(uuid, vanish)
            agent.look_at_devices()
            self.timeline.after(self._random.randint(1, self.faults.device_away_ms), self._mend_device, agent, uuid)

    def _intrude(self) -> None:
        agent = self._some_agent()
        if there := agent.gpus.there:
            agent.intrude(self._random.choice(there))

    @staticmethod
    def _mend_device(agent: AgentNode, uuid: Any) -> None:
        agent.gpus.mend(uuid)
        agent.look_at_devices()

    def _kill_framework(self) -> None:
        self._random.choice(self.frameworks).die()


def simulate(seed: int, steps: int, **options: Any) -> Summary:
    """Run one seed. Raises SimulationFailure."""
    world = World(seed, **options)
    world.populate()
    return world.run(steps)
