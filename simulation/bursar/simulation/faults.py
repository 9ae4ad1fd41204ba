"""What goes wrong, and how often: one value, itself drawn from the seed, so that every seed stresses something else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Rates are per simulated minute (`_per_minute`) or chances of 0 to 1 (`_chance`); 0 never happens."""

    #: Network: the usual delay of a message is up to this; a slow one takes up to `slow_message_ms`.
    message_ms: int = 3
    slow_message_chance: float = 0.0
    slow_message_ms: int = 5_000
    #: A stream breaks: what is in flight is lost, and each side learns of it up to `break_notice_ms` later.
    stream_breaks_per_minute: float = 0.0
    break_notice_ms: int = 100
    #: A machine is cut off for up to `partition_ms`; its streams survive or not.
    partitions_per_minute: float = 0.0
    partition_ms: int = 20_000

    #: Master: killed, for up to `master_down_ms`.
    master_crashes_per_minute: float = 0.0
    master_down_ms: int = 5_000
    #: Of each commit of the master: killed before it, after it, or in the middle of what comes after it.
    master_crash_before_commit_chance: float = 0.0
    master_crash_after_commit_chance: float = 0.0
    master_crash_in_release_chance: float = 0.0
    #: Agents: killed, for up to `agent_down_ms`; the same three moments; the whole machine started anew.
    agent_crashes_per_minute: float = 0.0
    agent_down_ms: int = 10_000
    agent_crash_before_commit_chance: float = 0.0
    agent_crash_after_commit_chance: float = 0.0
    agent_crash_in_release_chance: float = 0.0
    reboots_per_minute: float = 0.0
    #: Any process: stands still for up to `stall_ms`.
    stalls_per_minute: float = 0.0
    stall_ms: int = 30_000
    commit_ms: int = 2

    #: Containers: how long a start takes, how it fails, how a container is lost.
    start_ms: int = 20
    start_failure_chance: float = 0.0
    #: An image is not there and takes up to `pull_ms`, or cannot be had.
    image_missing_chance: float = 0.0
    pull_ms: int = 3_000
    #: A look at a task finds it unwell.
    check_failure_chance: float = 0.0
    container_losses_per_minute: float = 0.0
    #: Devices: one becomes unhealthy, or vanishes, for up to `device_away_ms`.
    device_failures_per_minute: float = 0.0
    device_away_ms: int = 30_000

    #: A container leaves a process on a device, for up to `linger_ms`; a process of nobody's task uses one; a driver does not answer.
    lingering_chance: float = 0.0
    linger_ms: int = 5_000
    strangers_per_minute: float = 0.0
    silent_driver_chance: float = 0.0

    #: Frameworks: killed, and back after up to `framework_down_ms`.
    framework_crashes_per_minute: float = 0.0
    framework_down_ms: int = 5_000
    #: Operators: reserve, unreserve, toggle, kill, tear down, look.
    operator_acts_per_minute: float = 0.0
    #: Of each request: its answer is lost, and it is repeated.
    operator_repeats_chance: float = 0.0

    #: Books: a task is lost from one of them, or a container comes or goes behind an agent's back.
    losses_per_minute: float = 0.0

    #: A container uses more of a card than its share, for a while or until it is ended; on machines whose GPUs are shares.
    overuses_per_minute: float = 0.0
    #: A container may not open its devices any more.
    access_losses_per_minute: float = 0.0
    #: Operators have cards cut. A look or a step takes up to `cut_ms`; it fails; a switch waits for a restart; the agent is killed meanwhile.
    cuts_per_minute: float = 0.0
    cut_ms: int = 20
    cut_failure_chance: float = 0.0
    cut_pending_chance: float = 0.0
    agent_death_in_cut_chance: float = 0.0
    #: Of each cut: an instance is taken away by other means before the agent has looked at what came of it.
    cut_meddling_chance: float = 0.0
    #: Operators make and destroy volumes; somebody removes the data of one by hand.
    volume_acts_per_minute: float = 0.0
    volume_losses_per_minute: float = 0.0

    @classmethod
    def draw(cls, random: Random) -> Faults:
        """Each fault is on or off, and if on, rare or frequent."""
        values: dict[str, float | int] = {}
        for field in fields(cls):
            name = field.name
            if name.endswith("_chance"):
                scale = 0.01 if "crash" in name else 0.05 if "message" in name else 0.2
                values[name] = _some(random) * scale
            elif name.endswith("_per_minute"):
                scale = _SCALES_PER_MINUTE.get(name, 4.0)
                values[name] = _some(random) * scale
            else:
                values[name] = random.choice(_DURATIONS_MS[name])
        # Somebody should always look and turn knobs a little.
        values["operator_acts_per_minute"] = max(values["operator_acts_per_minute"], 2.0)
        values["cuts_per_minute"] = max(values["cuts_per_minute"], 12.0)
        values["volume_acts_per_minute"] = max(values["volume_acts_per_minute"], 6.0)
        return cls(**values)  # type: ignore[arg-type]

    def shown(self) -> str:
        """Those that are on, for people."""
        on = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join(
            f"{name} {value:.4g}" for name, value in on if value and name.endswith(("_chance", "_per_minute"))
        )


#: Of those that are more frequent than others when they are on: most cards are in use when somebody wants to cut them.
_SCALES_PER_MINUTE = {"operator_acts_per_minute": 40.0, "cuts_per_minute": 200.0}

_DURATIONS_MS: dict[str, tuple[int, ...]] = {
    "message_ms": (0, 1, 3, 20, 200),
    "slow_message_ms": (500, 3_000, 8_000),
    "break_notice_ms": (0, 100, 10_000, 60_000),
    "partition_ms": (1_000, 10_000, 60_000),
    "master_down_ms": (10, 3_000, 60_000),
    "agent_down_ms": (10, 3_000, 60_000),
    "stall_ms": (500, 5_000, 60_000),
    "commit_ms": (0, 2, 50),
    "start_ms": (0, 20, 2_000),
    "pull_ms": (100, 3_000, 60_000),
    "device_away_ms": (1_000, 30_000),
    "linger_ms": (100, 5_000, 60_000),
    "framework_down_ms": (10, 5_000),
    "cut_ms": (0, 20, 5_000),
}


def _some(random: Random) -> float:
    """Zero half of the time, else between a hundredth and one, each order of magnitude as likely."""
    return 0.0 if random.random() < 0.5 else 10.0 ** random.uniform(-2, 0)
