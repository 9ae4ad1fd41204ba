"""Role paths and what they cover (mesos.md §3.1)."""

from __future__ import annotations

DEFAULT_ROLE = "*"
_FORBIDDEN = frozenset("\x09\x0a\x0b\x0c\x0d\x20\x7f\x08")


def role_problem(role: str) -> str | None:
    """Say what is wrong with a role name, or nothing. `*` is valid here; callers that forbid it say so themselves."""
    if role == DEFAULT_ROLE:
        return None
    if not role:
        return "a role must not be empty"
    if role.startswith("/") or role.endswith("/"):
        return f"role {role!r} must not begin or end with '/'"
    for component in role.split("/"):
        if not component:
            return f"role {role!r} must not contain '//'"
        if component in (".", "..", "*"):
            return f"role {role!r} must not contain the component {component!r}"
        if component.startswith("-"):
            return f"role {role!r}: component {component!r} must not begin with '-'"
        for character in component:
            if character in _FORBIDDEN or ord(character) < 0x20 or 0xD800 <= ord(character) <= 0xDFFF:
                return f"role {role!r} must not contain white space or control characters"
    return None


def is_strict_subrole(role: str, ancestor: str) -> bool:
    """Say whether `role` is below `ancestor`."""
    return len(role) > len(ancestor) and role.startswith(ancestor) and role[len(ancestor)] == "/"


def covers(holder: str, role: str) -> bool:
    """Say whether resources reserved to `holder` may be offered to `role`: the role itself and its descendants (RSV-7)."""
    return holder == role or is_strict_subrole(role, holder)


def ancestors(role: str) -> list[str]:
    """The roles above, nearest first: `a/b/c` → `["a/b", "a"]`."""
    parts = role.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
