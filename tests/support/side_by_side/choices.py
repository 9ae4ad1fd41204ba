"""What random clusters choose from, and what that means for the reference."""

from __future__ import annotations

from typing import Any

SOME_ROLES = ["*", "a", "a/b", "a/c", "a/b/d", "e"]
KINDS = ["cpus", "mem", "gpus"]
CONSTRAINTS = [
    "rack=r1",
    "rack!=r1",
    "!region",
    "hostname=m1*",
    "gpus>=2",
    "gpus<=1",
    "cpus<=2",
    "cpus>=2,mem>=1GiB",
    "gpu.clique>=2",
    "gpu.health=healthy",
    "rack=r1,gpus<1",
]
#: The framework's part of a rule, and what it means.
FRAMEWORKS: dict[str, Any] = {
    "": lambda framework, role: True,
    "lacks=GPU_RESOURCES": lambda framework, role: not framework.capable,
    "has=REGION_AWARE|GPU_RESOURCES": lambda framework, role: framework.capable or framework.travels,
    "role=a/**": lambda framework, role: role.startswith("a/"),
    "role=*": lambda framework, role: role == "*",
    "name=f|g": lambda framework, role: framework.framework_id in ("f", "g"),
    "name=f*,role=e": lambda framework, role: framework.framework_id[0] == "f" and role == "e",
}
#: Whom reservations may be for that are for no plain role, and what that means.
EXPRESSIONS: dict[str, Any] = {
    "(a/** | e) & !a/b": lambda role, groups: role.startswith("a/") and not is_in(role, "a/b") or is_in(role, "e"),
    "=a | e": lambda role, groups: role == "a" or is_in(role, "e"),
    "@g": lambda role, groups: groups["g"](role),
    "a & !@g": lambda role, groups: is_in(role, "a") and not groups["g"](role),
}
MEMBERS: dict[tuple[str, ...], Any] = {
    ("a",): lambda role: is_in(role, "a"),
    ("a/b", "e"): lambda role: is_in(role, "a/b") or is_in(role, "e"),
    ("=a/c",): lambda role: role == "a/c",
    ("e/**",): lambda role: role.startswith("e/"),
}


def is_in(role: str, above: str) -> bool:
    return role == above or role.startswith(f"{above}/")


MINIMA = ["", "cpus:2", "cpus:4;mem:1GiB|gpus:1", "mem:16MiB"]
