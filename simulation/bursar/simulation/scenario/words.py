"""The words of one command: quoting, and reading them one after the other with errors that say what was expected."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from bursar.core.errors import InvalidText
from bursar.core.flags import closest

T = TypeVar("T")


def split_words(text: str) -> list[str]:
    """Words at blanks. Raises InvalidText.

    A word that begins with a quote of either kind ends with the next one like it, and loses both: `'(ml/** | eng) & !ml/x'`. In
    other words double quotes keep blanks and stay: `gpus("a b"):1`. A `#` that begins a word begins a comment.
    """
    words: list[str] = []
    index, size = 0, len(text)
    while index < size:
        character = text[index]
        if character.isspace():
            index += 1
        elif character == "#":
            break
        elif character in "'\"":
            end = _closing(text, index)
            if end + 1 < size and not text[end + 1].isspace():
                raise InvalidText(f"a blank is missing after {text[index : end + 1]}", "put one between two words")
            words.append(text[index + 1 : end])
            index = end + 1
        else:
            start = index
            while index < size and not text[index].isspace():
                index = _closing(text, index) + 1 if text[index] == '"' else index + 1
            words.append(text[start:index])
    return words


def _closing(text: str, start: int) -> int:
    """Where the quote at `start` is closed."""
    end = text.find(text[start], start + 1)
    if end < 0:
        raise InvalidText(f"the quote {text[start]} is never closed: {text[start:]}", f"close it with {text[start]}")
    return end


class Words:
    """Reads the words of one command. Every method raises InvalidText with the command's usage as the hint."""

    def __init__(self, words: Collection[str], usage: str) -> None:
        self._words = list(words)
        self.usage = usage

    def __bool__(self) -> bool:
        return bool(self._words)

    def problem(self, message: str) -> InvalidText:
        """What is wrong, with how it is written."""
        return InvalidText(message, f"write: {self.usage}")

    def next(self, what: str) -> str:
        """The next word."""
        if not self._words:
            raise self.problem(f"{what} is missing")
        return self._words.pop(0)

    def read(self, what: str, reader: Callable[[str], T]) -> T:
        """The next word, through one of the core grammars, which raises for itself."""
        return reader(self.next(what))

    def take(self, word: str) -> bool:
        """Take the next word where it is this one."""
        if self._words and self._words[0] == word:
            self._words.pop(0)
            return True
        return False

    def keyword(self, known: Collection[str]) -> str | None:
        """The next word, which must be one of these; None where there is none."""
        if not self._words:
            return None
        word = self._words.pop(0)
        if word not in known:
            near = closest(word, list(known))
            also = f": did you mean {near}?" if near else f": it is none of {', '.join(sorted(known))}"
            raise self.problem(f"{word!r} is not expected here{also}")
        return word

    def rest(self) -> list[str]:
        """All that is left."""
        words, self._words = self._words, []
        return words

    def end(self) -> None:
        """Nothing may be left."""
        if self._words:
            raise self.problem(f"{self._words[0]!r} is not expected here")
