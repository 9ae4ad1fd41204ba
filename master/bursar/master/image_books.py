"""What the master knows of images: orders to pull some, and which agents have which. Nothing of it is durable."""

from __future__ import annotations

from dataclasses import dataclass, field

from bursar.core.ids import AgentId
from bursar.core.images import Image, ImagePull, ImagePullState

#: Orders that are remembered; the oldest that are over are forgotten first.
MAX_PULLS = 500


@dataclass(slots=True)
class PullOrder:
    """One order, and where it is on each agent."""

    pull_id: str
    image: str
    principal: str
    ordered_at_ms: int
    members: dict[AgentId, ImagePull] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return all(member.state.is_over for member in self.members.values())

    def member(self, state: ImagePullState = ImagePullState.WAITING) -> ImagePull:
        """What is known of an agent that has said nothing yet."""
        return ImagePull(self.pull_id, self.image, state, principal=self.principal, ordered_at_ms=self.ordered_at_ms)


@dataclass(slots=True)
class ImageBooks:
    """What the master knows of images; forgotten when it ends."""

    orders: dict[str, PullOrder] = field(default_factory=dict)
    on_agents: dict[AgentId, tuple[Image, ...]] = field(default_factory=dict)
    sequence: int = 0
