"""Dialogues: images that operators want on this agent beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from agent_dialogue import Agent, of, said, states, task

from bursar.agent.effects import AgentEffect, CancelPrefetch, PrefetchImage, PullImage
from bursar.agent.events import ImagesListed, PrefetchEnded, PrefetchProgressed
from bursar.agent.images import MAX_OVER
from bursar.core.images import Image, ImagePull, ImagePullState, PullFailure, PullProgress
from bursar.core.messages.agent import CancelImagePull, ImagePulls, Images, StartImagePull

ORDER = StartImagePull("p", "big:1", "ann", 7)
HALF = PullProgress(2, 1, 100, 50)
S = ImagePullState


def pulls(effects: Sequence[AgentEffect]) -> list[ImagePull]:
    return [pull for message in said(effects) if isinstance(message, ImagePulls) for pull in message.pulls]


def test_a_pull_is_begun_told_of_and_ends() -> None:
    agent = Agent(runtime="docker").ready()
    effects = agent.hear(ORDER)
    assert of(effects, PrefetchImage) == [PrefetchImage("p", "big:1")]
    assert pulls(effects) == [ImagePull("p", "big:1", S.PULLING, principal="ann", ordered_at_ms=7)]
    assert [pull.progress for pull in pulls(agent.step(PrefetchProgressed("p", HALF)))] == [HALF]
    assert pulls(agent.step(PrefetchProgressed("p", HALF))) == [], "nothing is different"
    (pull,) = pulls(agent.step(PrefetchEnded("p")))
    assert (pull.state, pull.progress) == (S.PULLED, PullProgress(2, 2, 100, 100))
    again = agent.hear(ORDER)
    assert not of(again, PrefetchImage) and pulls(again) == [pull], "said again, it is only told again"
    assert pulls(agent.step(PrefetchEnded("p", PullFailure.OTHER, "late"))) == []


def test_why_it_failed_is_told() -> None:
    agent = Agent(runtime="docker").ready()
    agent.hear(ORDER)
    (pull,) = pulls(agent.step(PrefetchEnded("p", PullFailure.REGISTRY_UNREACHABLE, "connection refused")))
    assert (pull.state, pull.failure, pull.message) == (
        S.FAILED,
        PullFailure.REGISTRY_UNREACHABLE,
        "connection refused",
    )


def test_plain_processes_have_no_images_and_a_name_with_shell_is_none() -> None:
    agent = Agent(runtime="process").ready()
    effects = agent.hear(ORDER)
    assert not of(effects, PrefetchImage)
    assert [(one.state, one.failure) for one in pulls(effects)] == [(S.FAILED, PullFailure.NO_IMAGES)]
    agent = Agent(runtime="docker").ready()
    effects = agent.hear(StartImagePull("p", "a;reboot"))
    assert not of(effects, PrefetchImage) and "is not an image name" in pulls(effects)[0].message


def test_a_cancelled_pull_is_over_at_once_and_what_follows_changes_nothing() -> None:
    agent = Agent(runtime="docker").ready()
    agent.hear(ORDER)
    effects = agent.hear(CancelImagePull("p"))
    assert of(effects, CancelPrefetch) == [CancelPrefetch("p")]
    assert [pull.state for pull in pulls(effects)] == [S.CANCELLED]
    assert pulls(agent.step(PrefetchEnded("p"))) == [] == pulls(agent.step(PrefetchProgressed("p", HALF)))
    assert not of(agent.hear(CancelImagePull("p")), CancelPrefetch)
    agent.hear(CancelImagePull("never"))


def test_a_new_connection_hears_everything_again() -> None:
    agent = Agent(runtime="docker").ready()
    agent.hear(ORDER)
    agent.step(ImagesListed((Image("sha256:1", ("small:1",), 5),)))
    agent.connect()
    assert pulls(agent.step(PrefetchProgressed("p", HALF))) == [], "not before the master has let us in"
    effects = agent.register(term=2)
    assert [(pull.pull_id, pull.progress) for pull in pulls(effects)] == [("p", HALF)]
    assert [message for message in said(effects) if isinstance(message, Images)] == [
        Images((Image("sha256:1", ("small:1",), 5),))
    ]


def test_another_life_knows_nothing_of_it() -> None:
    agent = Agent(runtime="docker").ready()
    agent.hear(ORDER)
    heir = Agent(agent.durable, runtime="docker").ready()
    assert of(heir.hear(ORDER), PrefetchImage), "it is begun anew: the engine has kept what it had loaded"


def test_images_are_told_when_they_change_the_largest_first() -> None:
    agent = Agent(runtime="docker").ready()
    small, large = Image("1", ("a:1",), 1), Image("2", ("b:1",), 2)
    assert said(agent.step(ImagesListed((small, large)))) == [Images((large, small))]
    assert said(agent.step(ImagesListed((large, small)))) == []
    assert said(agent.step(ImagesListed(()))) == [Images(())]


def test_what_is_over_is_forgotten_in_time() -> None:
    agent = Agent(runtime="process").ready()
    for number in range(MAX_OVER + 5):
        agent.hear(StartImagePull(f"p{number}", "x"))
    assert len(agent.machine.images.pulls) == MAX_OVER and "p0" not in agent.machine.images.pulls


def test_a_pull_holds_no_device_and_is_no_business_of_tasks() -> None:
    agent = Agent(runtime="docker", default_image="d").ready()
    agent.hear(ORDER)
    assert not agent.machine.live_devices()
    agent.run(task("t", 0, image="big:1"))
    agent.step(PrefetchEnded("p", PullFailure.IMAGE_NOT_FOUND, "no"))
    assert len(agent.machine.live_devices()) == 1
    end = agent.exit("t")
    assert not of(end, PullImage) and [state.name for state in states(end)] == ["FINISHED"]
