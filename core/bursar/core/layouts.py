"""Into what a GPU is to be cut, as operators write it: `1g.10gb=3,3g.40gb=1`, or `whole`."""

from __future__ import annotations

import re

from bursar.core.errors import InvalidText

#: Capability of an agent that can cut GPUs into instances.
PARTITION = "PARTITION"
#: The layout of a card that is not cut.
WHOLE = "whole"
#: So many instances, whatever the card.
MAX_INSTANCES = 64

_ITEM = re.compile(r"([0-9]+g\.[0-9]+gb(?:\+[a-z.]+|-me)?)(?:=([0-9]{1,3}))?")


def parse_layout(text: str) -> tuple[tuple[str, int], ...]:
    """Profiles and how many of each, largest first; nothing for `whole`. Raises InvalidText."""
    text = text.strip().lower()
    if text == WHOLE:
        return ()
    counts: dict[str, int] = {}
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise InvalidText(
                f"layout: {item.strip()!r} is not understood", "write PROFILE=COUNT,…, such as 1g.10gb=3, or whole"
            )
        counts[match[1]] = counts.get(match[1], 0) + int(match[2] or 1)
    if not 1 <= sum(counts.values()) <= MAX_INSTANCES or 0 in counts.values():
        raise InvalidText(
            f"layout: {text!r} is no layout", f"1 to {MAX_INSTANCES} instances, at least one of each profile"
        )
    return tuple(sorted(counts.items(), key=lambda item: (-int(item[0].partition("g")[0]), item[0])))


def format_layout(counts: tuple[tuple[str, int], ...]) -> str:
    """What `parse_layout` reads back."""
    return ",".join(f"{profile}={count}" for profile, count in counts) or WHOLE
