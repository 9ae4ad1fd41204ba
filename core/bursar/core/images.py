"""Images on agents, and orders to have one there beforehand; mirrors `bursar/v1/images.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MAX_IMAGE_BYTES = 512


class ImagePullState(IntEnum):
    """Where a pull is on one agent; mirrors `bursar.v1.ImagePullState`."""

    UNSPECIFIED = 0
    #: The agent has not said that it has begun: it is not connected, perhaps.
    WAITING = 1
    PULLING = 2
    PULLED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return self in (ImagePullState.PULLED, ImagePullState.FAILED, ImagePullState.CANCELLED)


class PullFailure(IntEnum):
    """Why a pull has failed; mirrors `bursar.v1.PullFailure`."""

    UNSPECIFIED = 0
    IMAGE_NOT_FOUND = 1
    REGISTRY_UNREACHABLE = 2
    #: The agent runs plain processes.
    NO_IMAGES = 3
    ENGINE_LOST = 4
    #: The message says what.
    OTHER = 5


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is, as far as the engine tells; mirrors `bursar.v1.PullProgress`."""

    layers: int = 0
    layers_done: int = 0
    #: Of the layers of which the size is known by now.
    size_bytes: int = 0
    done_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ImagePull:
    """One pull on one agent, as the agent tells; mirrors `bursar.v1.ImagePull`."""

    pull_id: str
    image: str
    state: ImagePullState = ImagePullState.UNSPECIFIED
    failure: PullFailure = PullFailure.UNSPECIFIED
    message: str = ""
    progress: PullProgress = PullProgress()
    #: As it was ordered: for a master that has forgotten.
    principal: str = ""
    ordered_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Image:
    """An image that an engine has; mirrors `bursar.v1.Image`."""

    image_id: str
    names: tuple[str, ...] = ()
    size_bytes: int = 0


def image_problem(image: str) -> str:
    """Say why a text cannot be the name of an image, whatever registries there are; or nothing."""
    if not image:
        return "no image is named"
    if len(image.encode("utf-8", "surrogatepass")) > MAX_IMAGE_BYTES:
        return f"the name is longer than {MAX_IMAGE_BYTES} bytes"
    if (
        image.startswith("-")
        or not image.isprintable()
        or any(c.isspace() or c in "\\\"'`$;|&<>(){}*?!#~" for c in image)
    ):
        return f"{image!r} is not an image name, such as registry.example.org/team/image:tag"
    return ""
