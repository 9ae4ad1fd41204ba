"""What an author writes: a subclass of `Framework`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bursar.core.errors import BursarError, ErrorDetail, InvalidText
from bursar.core.messages.executor import message_problem
from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import Shape
from bursar.core.predicates import parse_predicates
from bursar.core.resources import ResourceRequest
from bursar.core.roles import DEFAULT_ROLE, role_problem
from bursar.core.text import parse_minimum
from bursar.sdk.amounts import Amount, request_from
from bursar.sdk.offers import Bundle, Offer
from bursar.sdk.tasks import Status, Task, TaskGroup

if TYPE_CHECKING:
    from bursar.sdk.session import FrameworkSession

log = logging.getLogger("bursar.sdk")

WantedShape = Mapping[str, Amount] | Task | ResourceRequest
"""`{"cpus": 4, "mem": "16GiB", "gpus": 1}`, or a task that needs as much."""
Want = tuple[WantedShape, int] | tuple[WantedShape, int, str]
"""A shape, how many of it, and for which role where the framework has several."""


Constraints = Iterable[str] | Mapping[str, Iterable[str]]
"""Predicates joined by commas, of which one must be true; or these by role."""
Minima = str | Mapping[str, str] | None
"""Alternatives of amounts; or these by role."""


class Framework:
    """A client that accepts offers and owns tasks. Override what you need; every method is called in the event loop and should
    return quickly. An exception that leaves one of them ends `run`, which raises it; the tasks then go on for `failover_timeout`.

    Done by the SDK: offers that are not answered are declined, statuses acknowledged once `on_status` has returned, connections
    opened again with the same id, the demand repeated, lost answers asked for, tasks reconciled.
    """

    #: For people; the class name where empty.
    name: str = ""
    #: The role, or several.
    role: str = DEFAULT_ROLE
    roles: tuple[str, ...] = ()
    #: What the framework understands; `GPU_RESOURCES` lets it see agents with GPUs.
    capabilities: Iterable[str] = ()
    #: How long tasks live on without the framework: seconds, or a text such as `10m`. 0: they end with the connection.
    failover_timeout: float | str = 60
    #: Give the id of an earlier life to take its tasks over; made by the SDK where empty.
    framework_id: str = ""
    webui_url: str = ""
    labels: Mapping[str, str] = {}
    #: Which offers are taken: one of these is true of an offer, such as `["gpu.model=H100,gpus>=4", "rack=r1"]`. By role where they
    #: differ: `{"ml/train": [...]}`. Empty: all.
    constraints: Constraints = ()
    #: What an offer has at least, such as `cpus:1;mem:1GiB|gpus:1`, or empty for anything; by role where it differs. None: what the
    #: cluster says.
    min_allocatable: Minima = None

    _session: FrameworkSession | None = None

    # --- override ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Prepare: called once, before the first connection."""

    def wants(self) -> Iterable[Want] | None:
        """Say everything that is wanted now: `[(shape, count), …]`. None: no demand stated, every offer is welcome.

        Asked again after every other call: say what is true, the SDK sends what changed.
        """
        return None

    def on_offer(self, offer: Offer) -> Iterable[Task | TaskGroup] | None:
        """Return or yield the tasks and task groups to launch on an offer; what is left of it is declined."""
        return None

    def on_bundle(self, bundle: Bundle) -> Iterable[Task] | None:
        """Return or yield the tasks of a gang, one for each of `bundle.places`, in that order. None at all declines the bundle."""
        return None

    def on_gang_ended(self, gang_id: str, error: ErrorDetail | None) -> None:
        """Hear that there is no bundle for a gang: it could never fit, its time passed, or its bundle was declined."""

    def on_status(self, task: Task, status: Status) -> None:
        """Hear where a task is. It is acknowledged once this returns; a repetition is not delivered again."""

    def on_launched(self, task: Task) -> None:
        """Hear that the master took a task, durably: it happens, or its end is reported."""

    def on_refused(self, task: Task, error: ErrorDetail) -> None:
        """Hear that the master did not take a task: it never ran. Without an override `on_status` hears it as DROPPED
        (another offer may do: `status.retryable`) or ERROR (the task itself is wrong).
        """
        self.on_status(task, task.status)

    def on_rescinded(self, offer_id: str, reason: str) -> None:
        """Hear that an offer is void. Nothing to do: the SDK never holds one back."""

    def on_subscribed(self, again: bool) -> None:
        """Hear that the framework is registered, or registered again."""

    def on_disconnected(self, error: ErrorDetail) -> None:
        """Hear that the master is away. Nothing to do: the SDK tries again."""

    def on_updated(self, error: ErrorDetail | None) -> None:
        """Hear that the master knows what `update` changed; with an error, that it is as it was before."""

    def on_preempted(self, task: Task, seconds: float, reason: str) -> None:
        """Hear that what a task runs on was lent and is wanted back: it is killed in so many seconds. May be told again.

        Only for those with the capability `REVOCABLE_RESOURCES`. Let the task save its work and end, or launch it again elsewhere.
        """

    def on_agent_failure(self, agent_id: str, message: str) -> None:
        """Hear that an agent left; its tasks have statuses of their own."""

    def on_message(self, executor: Task, data: bytes) -> None:
        """Hear what one of the executors says, at most once: what it says while you are away is lost."""

    # --- use --------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> Mapping[str, Task]:
        """Tasks by id, from the moment they are yielded until their end was reported."""
        return self._session.running if self._session is not None else {}

    def stop(self) -> None:
        """Unregister: tasks that still run end, and `run` returns. From any thread."""
        self._bound().stop()

    def kill(self, task: Task | str, grace_ms: int | None = None) -> None:
        """End a task: SIGTERM, grace, SIGKILL; its status tells the outcome. From any thread."""
        self._bound().kill(task if isinstance(task, str) else task.id, grace_ms)

    def restart(self, task: Task | str, grace_ms: int | None = None) -> None:
        """Start a running task again on its agent, in a new container; its statuses tell the outcome. From any thread."""
        self._bound().restart(task if isinstance(task, str) else task.id, grace_ms)

    def message(self, executor: Task | str, data: bytes) -> None:
        """Say something to an executor, at most once: it is lost where that is not there this moment. From any thread.

        Ask for an answer where that matters, and repeat it. Raises InvalidText for more than 64 KiB; what comes faster than 100 a
        second, or 1 MiB a second, is lost, too.
        """
        if problem := message_problem(data):
            raise InvalidText(*problem)
        self._bound().message(executor if isinstance(executor, str) else executor.id, data)

    def reconcile(self, *tasks: Task | str) -> None:
        """Ask where tasks are, by their ids; those of an earlier life too. From any thread.

        Each answer comes to `on_status`, also where it is what was known already: the state of a task that the master remembers, or
        `UNKNOWN` where it knows none. There is no such answer while agents are still on their way back to a new master.
        """
        self._bound().reconcile(*(task if isinstance(task, str) else task.id for task in tasks))

    def suppress(self, *roles: str) -> None:
        """Want no offers for these roles (none: all). From any thread."""
        self._bound().suppress(*roles)

    def revive(self, *roles: str) -> None:
        """Want offers for these roles again (none: all), also of what was declined a moment ago. From any thread."""
        self._bound().revive(*roles)

    def request_gang(
        self,
        groups: Iterable[tuple[WantedShape, int]],
        *,
        ttl: float | str,
        role: str = "",
        same: str = "",
        nvlink: bool = False,
        release_all: bool = True,
        gang_id: str = "",
    ) -> str:
        """Ask for room for tasks that start together or not at all: `[(shape, count), …]`; return the gang's id. From any thread.

        `ttl`: how long it waits, seconds or a text such as `10m`. `same`: an attribute of which all agents have the same value, such
        as `rack`. `nvlink`: each task's GPUs are linked. `release_all`: where one ends without having run, the others are
        killed. The answer is `on_bundle` or `on_gang_ended`; after a reconnect the SDK asks again. Raises InvalidText.
        """
        return self._bound().request_gang(
            groups, ttl=ttl, role=role, same=same, nvlink=nvlink, release_all=release_all, gang_id=gang_id
        )

    def cancel_gang(self, gang_id: str) -> None:
        """Want a gang no more. From any thread."""
        self._bound().cancel_gang(gang_id)

    def update(self, **changes: Any) -> None:
        """Have `wants` asked again: call this after a change that no other method saw. From any thread.

        With `roles`, `capabilities`, `constraints`, `min_allocatable`, `name`, `labels`, `webui_url` or `failover_timeout` the master
        is told of these as well: the stream and the tasks go on, what no longer may be offered is rescinded, and `on_updated` hears the outcome. Until then
        the framework's attributes are what they were; `wants` may name new roles at once. Raises InvalidText.
        """
        self._bound().update(**changes)

    def _bound(self) -> FrameworkSession:
        if self._session is None:
            raise BursarError("the framework does not run", "call this after run(framework) has begun")
        return self._session


def all_roles(framework: Framework) -> tuple[str, ...]:
    """The roles of a framework. Raises InvalidText."""
    return checked_roles(framework.roles or (framework.role,))


def checked_roles(names: Iterable[str]) -> tuple[str, ...]:
    """Several roles, if they are roles. Raises InvalidText."""
    if isinstance(names, str):
        raise InvalidText(f"roles: {names!r} is one text", "write role = ... for one role, or a tuple of roles")
    roles = tuple(names)
    if not roles:
        raise InvalidText("roles: there is none", "a framework has at least one role; '*' is the default")
    for role in roles:
        if problem := role_problem(role):
            raise InvalidText(problem, "see docs/vocabulary.md for role names")
    if len(set(roles)) != len(roles):
        raise InvalidText(f"roles: {', '.join(roles)} names one twice", "name each role once")
    return roles


def checked_settings(constraints: Constraints, minima: Minima, roles: tuple[str, ...]) -> tuple[OfferSettings, ...]:
    """Which offers are taken, role by role; roles that take any are left out. Raises InvalidText."""
    if isinstance(constraints, str):
        raise InvalidText(
            f"constraints: {constraints!r} is one text", "write a list of texts, of which one must be true of an offer"
        )
    by_role = constraints if isinstance(constraints, Mapping) else dict.fromkeys(roles, tuple(constraints))
    least = minima if isinstance(minima, Mapping) else {} if minima is None else dict.fromkeys(roles, minima)
    for what, named in (("constraints", by_role), ("min_allocatable", least)):
        for role in named:
            if role not in roles:
                raise InvalidText(f"{what}: {role!r} is not a role of this framework", f"use one of {', '.join(roles)}")
    settings = []
    for role in roles:
        texts, minimum = by_role.get(role, ()), least.get(role)
        if isinstance(texts, str):
            raise InvalidText(f"constraints: {texts!r} is one text", "write a list of texts for each role")
        groups = tuple(texts)
        for group in groups:
            if not parse_predicates(group, "constraints"):
                raise InvalidText("constraints: an empty text is true of every offer", "leave it out")
        if minimum is not None:
            parse_minimum(minimum, "min_allocatable")
        if groups or minimum is not None:
            settings.append(OfferSettings(role, groups, minimum))
    return tuple(settings)


def stated_demand(framework: Framework, roles: tuple[str, ...]) -> tuple[Shape, ...] | None:
    """What `wants` says, as shapes. Raises InvalidText."""
    wants = framework.wants()
    if wants is None:
        return None
    shapes: dict[tuple[str, ResourceRequest], int] = {}
    for want in wants:
        wanted, count, role = want if len(want) == 3 else (*want, roles[0])
        if role not in roles:
            raise InvalidText(f"wants: {role!r} is not a role of this framework", f"use one of {', '.join(roles)}")
        if count < 0:
            raise InvalidText(f"wants: the count {count} is negative", "return 0 or more")
        wanted = as_request(wanted)
        if not wanted:
            raise InvalidText("wants: a shape asks for nothing", "name at least one amount above zero, such as cpus=1")
        if count:
            shapes[role, wanted] = shapes.get((role, wanted), 0) + count
    return tuple(Shape(role, wanted, count) for (role, wanted), count in shapes.items())


def as_request(wanted: WantedShape) -> ResourceRequest:
    """A shape as an author writes it. Raises InvalidText."""
    if isinstance(wanted, Task):
        return wanted.request
    return wanted if isinstance(wanted, ResourceRequest) else request_from(wanted)
