"""What a verb is, the names that a script has given, and finding the verb that a command begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bursar.core.errors import InvalidText
from bursar.core.flags import closest
from bursar.core.ids import id_problem
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.words import Words

Action = Callable[[Stage], None]


@dataclass(slots=True)
class Names:
    """What earlier commands of the script have named."""

    agents: set[str] = field(default_factory=set)
    frameworks: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    #: (Framework, gang) → how many tasks it has, as asked for last.
    gangs: dict[tuple[str, str], int] = field(default_factory=dict)

    def declare(self, kind: str, words: Words) -> str:
        """A new name. Raises InvalidText where there is one already."""
        name = words.next(f"the name of the {kind}")
        if problem := id_problem(name):
            raise words.problem(f"{name!r} is no name: {problem}")
        known: set[str] = getattr(self, f"{kind}s")
        if name in known:
            raise words.problem(f"the {kind} {name!r} is there already: names are used once in a script")
        known.add(name)
        return name

    def known(self, kind: str, words: Words) -> str:
        """A name that was declared. Raises InvalidText."""
        name = words.next(f"the name of the {kind}")
        known: set[str] = getattr(self, f"{kind}s")
        if name not in known:
            near = closest(name, sorted(known))
            also = f"did you mean {near}?" if near else f"an earlier line must add {'it' if known else 'one'}"
            raise InvalidText(f"no {kind} {name!r} was added above", also)
        return name


_VERBS: dict[tuple[str, ...], tuple[str, Callable[[Words, Names], Action]]] = {}


def verb(usage: str) -> Callable[[Callable[[Words, Names], Action]], Callable[[Words, Names], Action]]:
    """Enter a verb under the words in lower case that its usage begins with."""

    def enter(read: Callable[[Words, Names], Action]) -> Callable[[Words, Names], Action]:
        words = usage.split()
        length = next(
            (index for index, word in enumerate(words) if not word.isalpha() or not word.islower()), len(words)
        )
        _VERBS[tuple(words[:length])] = (usage, read)
        return read

    return enter


def usages() -> list[str]:
    """How every verb is written."""
    return [usage for usage, _ in _VERBS.values()]


def parse_verb(words: Sequence[str], names: Names) -> Action | None:
    """What a command does; None where its words begin with no verb. Raises InvalidText."""
    for length in (2, 1):
        entry = _VERBS.get(tuple(words[:length]))
        if entry is not None and len(words) >= length:
            usage, read = entry
            rest = Words(words[length:], usage)
            action = read(rest, names)
            rest.end()
            return action
    return None
