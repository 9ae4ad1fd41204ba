"""What a world draws from its seed beside its faults."""

from __future__ import annotations

from random import Random


def patience_ms(random: Random) -> int:
    """How long a framework may be away."""
    return random.choice((0, 5_000, 60_000, 600_000))


def draw_flags(random: Random) -> dict[str, str]:
    """How the master is started; shorter times than by default make more happen."""
    flags = {
        "filter_gpu_resources": random.choice(("true", "true", "false", "strip")),
        "allocation_interval": random.choice(("1s", "1s", "200ms", "5s")),
        "offer_timeout": random.choice(("30s", "5s", "1s")),
        "agent_ping_timeout": random.choice(("15s", "2s", "1s")),
        "max_agent_ping_timeouts": random.choice(("5", "2")),
        "preemption_notice": random.choice(("30s", "1s", "0s")),
        "agent_reregister_timeout": random.choice(("10m", "30s", "5s")),
    }
    if random.random() < 0.2:
        flags["fair_sharing_excluded_resource_names"] = "cpus"
    return flags
