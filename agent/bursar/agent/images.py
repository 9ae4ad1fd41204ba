"""The room of images: pulls that operators ordered, from the order to the end, and what the engine has.

Nothing of it is durable: a pull that is over leaves the image with the engine, and one that is not is ordered again by the master
when another life of this agent registers. No device is held, and the runtime joins a task that waits for the same image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bursar.agent.books import Books
from bursar.agent.effects import CancelPrefetch, PrefetchImage
from bursar.core.images import Image, ImagePull, ImagePullState, PullFailure, PullProgress, image_problem
from bursar.core.messages.agent import ImagePulls, Images, StartImagePull

#: Pulls that are over and are still told to a master that has forgotten them.
MAX_OVER = 100
#: More images than these are not told; the largest are.
MAX_IMAGES = 2000
MAX_MESSAGE_LENGTH = 2000
_S = ImagePullState


class ImageRoom:
    """Orders about images, and what became of them."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: In the order of their beginnings.
        self.pulls: dict[str, ImagePull] = {}
        self._changed: dict[str, None] = {}
        self._images: tuple[Image, ...] = ()
        self._images_told: tuple[Image, ...] | None = None

    def check(self) -> None:
        """Assert what must hold."""
        assert all(pull_id == pull.pull_id for pull_id, pull in self.pulls.items())
        assert sum(pull.state.is_over for pull in self.pulls.values()) <= MAX_OVER

    def begin(self) -> None:
        """A master has let us in: it hears everything."""
        self._changed = dict.fromkeys(self.pulls)
        self._images_told = None

    def order(self, message: StartImagePull) -> None:
        """Begin a pull; one that is known is only told again."""
        self._changed[message.pull_id] = None
        if message.pull_id in self.pulls:
            return
        pull = ImagePull(
            message.pull_id,
            message.image,
            _S.PULLING,
            principal=message.principal,
            ordered_at_ms=message.ordered_at_ms,
        )
        if problem := image_problem(message.image):
            pull = replace(pull, state=_S.FAILED, failure=PullFailure.OTHER, message=problem)
        elif self._books.info.runtime == "process":
            words = "this agent runs plain processes, which have no images"
            pull = replace(pull, state=_S.FAILED, failure=PullFailure.NO_IMAGES, message=words)
        else:
            self._books.log("info", "pulling an image beforehand", image=message.image, pull=message.pull_id)
            self._books.effects.append(PrefetchImage(message.pull_id, message.image))
        self.pulls[message.pull_id] = pull
        self._forget_old()

    def cancel(self, pull_id: str) -> None:
        """Nobody wants it any more; a task that waits for the image still does."""
        pull = self.pulls.get(pull_id)
        if pull is not None and not pull.state.is_over:
            self._books.effects.append(CancelPrefetch(pull_id))
            self._end(replace(pull, state=_S.CANCELLED, message="cancelled by an operator"))

    def progressed(self, pull_id: str, progress: PullProgress) -> None:
        """The engine told how far it is."""
        pull = self.pulls.get(pull_id)
        if pull is not None and not pull.state.is_over and pull.progress != progress:
            self.pulls[pull_id] = replace(pull, progress=progress)
            self._changed[pull_id] = None

    def ended(self, pull_id: str, failure: PullFailure, message: str) -> None:
        """It is here, or cannot be had."""
        pull = self.pulls.get(pull_id)
        if pull is None or pull.state.is_over:
            return
        if failure is PullFailure.UNSPECIFIED:
            done = replace(pull.progress, layers_done=pull.progress.layers, done_bytes=pull.progress.size_bytes)
            self._end(replace(pull, state=_S.PULLED, progress=done))
        else:
            message = message[:MAX_MESSAGE_LENGTH]
            self._books.log("warning", "an image could not be pulled", image=pull.image, reason=message)
            self._end(replace(pull, state=_S.FAILED, failure=failure, message=message))

    def listed(self, images: Sequence[Image]) -> None:
        """What the engine has."""
        self._images = tuple(sorted(images, key=lambda image: -image.size_bytes)[:MAX_IMAGES])

    def flush(self) -> None:
        """A step ends: tell what is different."""
        connection = self._books.connection
        if not self._books.registered or connection is None:
            return
        if self._changed:
            told = tuple(self.pulls[pull_id] for pull_id in self._changed if pull_id in self.pulls)
            self._changed.clear()
            if told:
                self._books.send(connection, ImagePulls(told))
        if self._images != (self._images_told or ()):
            self._images_told = self._images
            self._books.send(connection, Images(self._images))

    def _end(self, pull: ImagePull) -> None:
        self.pulls[pull.pull_id] = pull
        self._changed[pull.pull_id] = None
        self._forget_old()

    def _forget_old(self) -> None:
        over = [pull_id for pull_id, pull in self.pulls.items() if pull.state.is_over]
        for pull_id in over[: max(0, len(over) - MAX_OVER)]:
            del self.pulls[pull_id]
