"""What a framework says of itself: checked before it connects, and changed while it runs; over real gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sweep import Sweep, running

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import (
    OfferSettings,
    Subscribe,
    UpdateFramework,
)
from bursar.sdk import (
    BursarError,
    Framework,
    FrameworkSession,
    InvalidText,
    Task,
)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"role": "a//b"}, "//"),
        ({"roles": ("a", "a")}, "twice"),
        ({"roles": "ab"}, "one text"),
        ({"capabilities": "GPU_RESOURCES"}, "several"),
        ({"failover_timeout": "soon"}, "duration"),
        ({"framework_id": "a/b"}, "framework_id"),
    ],
)
def test_wrong_attributes_are_refused_with_a_remedy(attributes: dict[str, Any], words: str) -> None:
    framework = Framework()
    for name, value in attributes.items():
        setattr(framework, name, value)
    with pytest.raises(BursarError, match=words) as caught:
        FrameworkSession(framework, "127.0.0.1:1")
    assert caught.value.detail.hint


async def test_roles_and_capabilities_change_without_a_restart(master: Any) -> None:
    heard: list[Any] = []

    class Mover(Sweep):
        stop_when_done = False

        def on_subscribed(self, again: bool) -> None:
            self.update(roles=("ml/b", "ml/c"), capabilities=(), name="mover")

        def wants(self) -> list[Any]:
            return [({"cpus": 1}, 2)]

        def on_updated(self, error: ErrorDetail | None) -> None:
            heard.append((error, self.roles, self.capabilities, self.name))
            if len(heard) == 1:
                self.update(roles=("ml/d",))

    master.refuse_updates = []
    framework = Mover()
    async with running(framework, master):
        await master.until(lambda: len(master.said(UpdateFramework)) == 2)
        await asyncio.sleep(0.3)
    assert heard == [(None, ("ml/b", "ml/c"), frozenset(), "mover"), (None, ("ml/d",), frozenset(), "mover")]
    (info,) = master.frameworks.values()
    assert info.roles == ("ml/d",) and info.failover_timeout_ms == 60_000


async def test_a_refused_update_is_told_and_the_framework_goes_on(master: Any) -> None:
    heard: list[Any] = []

    class Refused(Sweep):
        def on_subscribed(self, again: bool) -> None:
            self.update(roles=("ml/b",))

        def on_updated(self, error: ErrorDetail | None) -> None:
            heard.append((error, self.roles))
            self.todo.append(Task("exit 0"))

    no = ErrorDetail(ErrorReason.INVALID_ARGUMENT, "not for you", "ask the operator")
    master.refuse_updates = [no]
    framework = Refused()
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 20)
    assert heard == [(no, ("ml/sweep",))] and framework.statuses[-1][1].ok


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roles": ()}, "there is none"),
        ({"roles": "x"}, "one text"),
        ({"roles": ("a//b",)}, "a//b"),
        ({"roles": ("x", "x")}, "twice"),
        ({"capabilities": "GPU_RESOURCES"}, "one text"),
        ({"failover_timeout": -1}, "failover_timeout"),
        ({"framework_id": "x"}, "cannot be changed"),
    ],
)
def test_what_cannot_be_updated_is_said_to_the_caller(changes: dict[str, Any], words: str) -> None:
    session = FrameworkSession(Sweep())
    with pytest.raises(InvalidText, match=words):
        session.framework.update(**changes)


async def test_which_offers_are_taken_is_said_role_by_role_and_can_change(master: Any) -> None:
    heard: list[Any] = []

    class Picky(Sweep):
        roles = ("ml/a", "ml/b")
        stop_when_done = False

        def on_subscribed(self, again: bool) -> None:
            self.update(roles=("ml/a",))

        def on_updated(self, error: ErrorDetail | None) -> None:
            heard.append((error, self.constraints, self.min_allocatable))
            if len(heard) == 1:
                self.update(constraints=["rack=r2"], min_allocatable="gpus:1")

    framework = Picky()
    framework.constraints = {"ml/a": ["gpu.model=H100,gpus>=2", "rack=r1"], "ml/b": ["zone=z"]}
    framework.min_allocatable = {"ml/b": ""}
    async with running(framework, master):
        await master.until(lambda: len(master.said(UpdateFramework)) == 2)
        await asyncio.sleep(0.3)
    a, b = ("gpu.model=H100,gpus>=2", "rack=r1"), ("zone=z",)
    said = [master.said(Subscribe)[0].info.offer_settings]
    said += [call.info.offer_settings for call in master.said(UpdateFramework)]
    assert said == [
        (OfferSettings("ml/a", a), OfferSettings("ml/b", b, "")),
        (OfferSettings("ml/a", a),),
        (OfferSettings("ml/a", ("rack=r2",), "gpus:1"),),
    ]
    assert [error for error, *_ in heard] == [None, None] and heard[-1][1:] == (("rack=r2",), "gpus:1")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"constraints": "rack=r1"}, "one text"),
        ({"constraints": [""]}, "empty"),
        ({"constraints": ["gpus>=x"]}, "x"),
        ({"constraints": {"other": ["rack"]}}, "not a role"),
        ({"min_allocatable": "cpus"}, "cpus"),
        ({"min_allocatable": {"other": ""}}, "not a role"),
    ],
)
def test_offers_that_cannot_be_described_are_refused_before_connecting(said: dict[str, Any], words: str) -> None:
    framework = Sweep()
    session = FrameworkSession(framework)
    with pytest.raises(InvalidText, match=words):
        session.update(**said)
    for name, value in said.items():
        setattr(framework, name, value)
    with pytest.raises(InvalidText, match=words):
        FrameworkSession(framework)
