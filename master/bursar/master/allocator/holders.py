"""Whom what is reserved may be offered to: asked once for each holder and role, until the role groups change (M-13, RSV-7)."""

from __future__ import annotations

from bursar.core.role_expressions import RoleExpression, RoleGroups, read_holder
from bursar.core.roles import is_strict_subrole

#: Answers kept at most; then all are forgotten, as they are when a group changes.
_MAX_ANSWERS = 200_000


class Holders:
    """The holders of reservations as they are meant now: texts, the role groups, and the answers given so far."""

    def __init__(self) -> None:
        #: By name; changed by `set_group` alone.
        self.groups: dict[str, RoleExpression] = {}
        #: Grows whenever a group changes: what was worked out under another number may be wrong now.
        self.version = 0
        self._plain: dict[str, str | None] = {}
        self._answers: dict[tuple[str, str], bool] = {}

    def covers(self, holder: str, role: str) -> bool:
        """Whether what is reserved to `holder` may be offered to `role`."""
        try:
            plain = self._plain[holder]
        except KeyError:
            plain = self._learn(holder)
        if plain is not None:
            return plain == role or is_strict_subrole(role, plain)
        answer = self._answers.get((holder, role))
        if answer is None:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            answer = read_holder(holder).covers(role, self.groups)
            self._answers[holder, role] = answer
        return answer

    def set_group(self, name: str, members: RoleExpression | None) -> None:
        """Make a group cover something else; None: there is no such group any more."""
        if members is None:
            self.groups.pop(name, None)
        else:
            self.groups[name] = members
        self._answers.clear()
        self.version += 1

    def check(self, groups: RoleGroups) -> None:
        """Assert that the groups are these, and that every answer given still holds."""
        assert self.groups == groups, (self.groups, groups)
        for (holder, role), answer in self._answers.items():
            assert read_holder(holder).covers(role, groups) == answer, (holder, role)

    def _learn(self, holder: str) -> str | None:
        if len(self._plain) >= _MAX_ANSWERS:
            self._plain.clear()
        plain = self._plain[holder] = read_holder(holder).plain
        return plain
