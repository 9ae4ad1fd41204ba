"""Which agents' descriptions a framework's stream has seen: an offer refers to its agent, and the description is sent once."""

from __future__ import annotations


class Described:
    """The agents whose description, as it is now, a stream has seen; by their numbers.

    A bit for each: a thousand frameworks that know fifty thousand agents are remembered in 6 MB.
    """

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits = bytearray()

    def note(self, number: int) -> bool:
        """It sees an agent's description; return whether it is news."""
        place, bit = number >> 3, 1 << (number & 7)
        bits = self._bits
        if place >= len(bits):
            bits.extend(bytes(place + 1 - len(bits)))
        if bits[place] & bit:
            return False
        bits[place] |= bit
        return True

    def forget(self, number: int) -> None:
        """The agent describes itself otherwise now."""
        place = number >> 3
        if place < len(self._bits):
            self._bits[place] &= ~(1 << (number & 7))
