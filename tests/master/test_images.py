"""Dialogues: images that operators want on agents, and what agents tell of them."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.images import Image, ImagePull, ImagePullState, PullFailure, PullProgress
from bursar.core.messages import operator as op
from bursar.core.messages.agent import CancelImagePull, ImagePulls, Images, StartImagePull
from bursar.master.image_books import MAX_PULLS

S = ImagePullState


def order(book: Any, image: str = "big:1", **where: Any) -> Any:
    answer = book.ask(op.PullImageRequest(image, **where))
    return answer.pull if isinstance(answer, op.PullImageResponse) else answer


def states(book: Any, pull_id: str) -> dict[str, str]:
    (pull,) = book.ask(op.ListImagePullsRequest(pull=pull_id)).pulls
    return {member.agent_id: member.pull.state.name for member in pull.members}


def told(pull: Any, state: ImagePullState, **more: Any) -> ImagePulls:
    return ImagePulls((ImagePull(pull.pull_id, pull.image, state, ordered_at_ms=pull.ordered_at_ms, **more),))


def test_named_agents_are_told_and_what_they_say_is_shown(book: Any) -> None:
    a, b = book.agent("a"), book.agent("b")
    pull = order(book, agents=("a.host",))
    assert [message.image for message in a.heard(StartImagePull)] == ["big:1"] and not b.heard(StartImagePull)
    assert states(book, pull.pull_id) == {"a": "WAITING"}
    a.say(told(pull, S.PULLING, progress=PullProgress(3, 1, 9, 4)))
    (shown,) = book.ask(op.ListImagePullsRequest()).pulls
    assert shown.members[0].pull.progress == PullProgress(3, 1, 9, 4)
    a.say(told(pull, S.PULLED))
    a.say(told(pull, S.PULLING))
    assert states(book, pull.pull_id) == {"a": "PULLED"}, "what is over stays so"
    assert [event.kind for event in book.published if event.kind.startswith("image")] == [
        "image_pull_ordered",
        "image_pulled",
    ]


def test_by_predicates_and_everywhere(book: Any) -> None:
    agents = {name: book.agent(name, gpus=gpus) for name, gpus in (("a", 2), ("b", 0))}
    assert states(book, order(book, where="gpus>=1").pull_id) == {"a": "WAITING"}
    assert states(book, order(book, all=True).pull_id) == {"a": "WAITING", "b": "WAITING"}
    agents["b"].disconnect()
    assert states(book, order(book, all=True).pull_id).keys() >= {"a"}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({}, "one of the three"),
        ({"agents": ("a",), "all": True}, "one of the three"),
        ({"agents": ("nobody",)}, "there is no agent"),
        ({"where": "gpus>=9"}, "none of 1 active agents matches"),
        ({"where": "gpus=>9"}, ""),
        ({"all": True, "image": "a;reboot"}, "is not an image name"),
        ({"all": True, "image": "--privileged"}, "is not an image name"),
        ({"all": True, "image": "x" * 600}, "longer than"),
        ({"all": True, "image": ""}, "no image is named"),
    ],
)
def test_what_cannot_be_ordered_is_refused_and_told_to_nobody(book: Any, where: dict[str, Any], words: str) -> None:
    agent = book.agent("a")
    refused = order(book, **where)
    assert isinstance(refused, ErrorDetail) and words in refused.message and refused.hint
    assert not agent.heard(StartImagePull) and not book.ask(op.ListImagePullsRequest()).pulls


def test_an_agent_that_is_back_is_told_again_until_it_is_over(book: Any) -> None:
    agent = book.agent("a")
    pull = order(book, agents=("a",))
    agent.heard(StartImagePull)
    agent.disconnect()
    (shown,) = book.ask(op.ListImagePullsRequest(pull=pull.pull_id)).pulls
    assert "goes on when it is back" in shown.members[0].pull.message
    agent.connect()
    assert [message.pull_id for message in agent.heard(StartImagePull)] == [pull.pull_id]
    agent.say(told(pull, S.FAILED, failure=PullFailure.IMAGE_NOT_FOUND, message="no"))
    agent.disconnect()
    agent.connect()
    assert not agent.heard(StartImagePull)


def test_a_new_master_knows_again_what_agents_tell(book: Any) -> None:
    a, b = book.agent("a"), book.agent("b")
    pull = order(book, all=True)
    book.restart()
    assert not book.ask(op.ListImagePullsRequest()).pulls
    for agent in (a, b):
        agent.connect()
        agent.say(told(pull, S.PULLING, principal="ann"))
    (shown,) = book.ask(op.ListImagePullsRequest()).pulls
    assert (shown.pull_id, shown.image, shown.principal, len(shown.members)) == (pull.pull_id, "big:1", "ann", 2)
    assert order(book, all=True).pull_id != pull.pull_id, "its numbers are not used again"


def test_a_cancelled_pull_is_ended_everywhere_and_stays_so(book: Any) -> None:
    a, b = book.agent("a"), book.agent("b")
    pull = order(book, all=True)
    a.say(told(pull, S.PULLED))
    b.disconnect()
    answer = book.ask(op.CancelImagePullRequest(pull.pull_id))
    assert {one.agent_id: one.pull.state for one in answer.pull.members} == {"a": S.PULLED, "b": S.CANCELLED}
    b.connect()
    assert len(b.heard(StartImagePull)) == 1, "before it left, not again"
    b.say(told(pull, S.PULLING))
    assert [message.pull_id for message in b.heard(CancelImagePull)] == [pull.pull_id], "it had not heard of that"
    assert states(book, pull.pull_id) == {"a": "PULLED", "b": "CANCELLED"}
    missing = book.ask(op.CancelImagePullRequest("pull-9-9"))
    assert isinstance(missing, ErrorDetail) and missing.reason is ErrorReason.NOT_FOUND


def test_images_of_agents_are_listed_as_told_last(book: Any) -> None:
    a, b = book.agent("a"), book.agent("b")
    a.say(Images((Image("1", ("x:1",), 5), Image("2", (), 3))))
    b.say(Images((Image("1", ("x:1",), 5),)))
    a.say(Images((Image("1", ("x:1",), 5),)))
    listed = book.ask(op.ListImagesRequest()).images
    assert [(one.hostname, one.image.image_id) for one in listed] == [("a.host", "1"), ("b.host", "1")]
    assert [one.hostname for one in book.ask(op.ListImagesRequest(agent="b")).images] == ["b.host"]


def test_old_orders_are_forgotten_and_too_many_are_refused(book: Any) -> None:
    agent = book.agent("a")
    with book.batch():
        ids = [order(book, agents=("a",)).pull_id for _ in range(MAX_PULLS)]
    refused = order(book, agents=("a",))
    assert isinstance(refused, ErrorDetail) and "under way already" in refused.message
    (first,) = book.ask(op.ListImagePullsRequest(pull=ids[0])).pulls
    agent.say(told(first, S.PULLED))
    assert not isinstance(order(book, agents=("a",)), ErrorDetail)
    assert isinstance(book.ask(op.ListImagePullsRequest(pull=ids[0])), ErrorDetail), "the oldest that was over"
