"""Every message comes back from the wire as it went, and what this version does not know is let through or ignored (M-01)."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bursar.core.ids import DeviceUuid
from bursar.core.messages import agent, executor, framework, offers, operator
from bursar.core.resources import PortRange, Reservation, ReservationType, ResourceRequest, Resources, normalize_ports
from bursar.core.tasks import StatusReason, TaskState, TaskStatus
from bursar.runtime.codec import decode, encode, message_class, operator_types, unwrap, wrap
from bursar.v1 import (
    agent_service_pb2,
    executor_service_pb2,
    framework_service_pb2,
    offers_pb2,
    operator_service_pb2,
    resources_pb2,
    tasks_pb2,
)

WRAPPERS = {
    "FrameworkCall": framework.FrameworkCall,
    "FrameworkEvent": framework.FrameworkEvent,
    "AgentMessage": agent.AgentMessage,
    "MasterMessage": agent.MasterMessage,
    "ExecutorCall": executor.ExecutorCall,
    "ExecutorEvent": executor.ExecutorEvent,
}
METHODS = [method.name for method in operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods]
UNARY = [name for name in METHODS if hasattr(operator, f"{name}Request")]

text = st.text(max_size=4)
amounts = st.dictionaries(st.sampled_from(["cpus", "mem", "disk", "widgets", "x.y"]), st.integers(1, 2**53), max_size=3)
ports = st.lists(
    st.builds(lambda first, more: PortRange(first, first + more), st.integers(1, 100), st.integers(0, 3)), max_size=3
).map(normalize_ports)
uuids = text.filter(bool).map(DeviceUuid)
#: The wire's integers.
INTEGERS = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def values_of(hint: Any, name: str = "", wire: FieldDescriptor | None = None) -> st.SearchStrategy[Any]:
    """Values of a type hint of the messages; `wire`: the field that carries them."""
    if hint is bytes:
        return st.binary(max_size=8)
    origin = get_origin(hint)
    hint = getattr(hint, "__supertype__", hint)
    if name == "attributes" and origin is Mapping and get_args(hint)[1] != str:
        return st.dictionaries(text, text | st.integers(-(2**53), 2**53), max_size=2)
    if hint is Resources:
        return st.builds(Resources, amounts, ports, st.frozensets(uuids, max_size=3))
    if hint is ResourceRequest:
        return st.builds(ResourceRequest, amounts, ports, st.integers(0, 100), st.lists(uuids, max_size=2).map(tuple))
    if hint is Reservation:
        labels = st.dictionaries(text, text, max_size=2).map(lambda found: tuple(sorted(found.items())))
        return st.builds(Reservation, st.sampled_from(ReservationType), text, text, labels)
    if hint is offers.Operation:
        kinds = values_of(offers.Launch) | values_of(offers.Reserve) | values_of(offers.Unreserve) | st.none()
        return st.builds(offers.Operation, text, kinds)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if item is type(None) else values_of(item, name, wire) for item in get_args(hint)])
    if origin is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=2).map(tuple)
    if origin is not None and issubclass(origin, Mapping):
        of = st.integers(-(2**63), 2**63 - 1) if get_args(hint)[1] is int else text
        return st.dictionaries(text, of, max_size=2)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        carried = message_class(hint.__name__).DESCRIPTOR.fields_by_name
        fields = [field.name for field in dataclasses.fields(hint)]
        return st.builds(hint, **{name: values_of(hints[name], name, carried[name]) for name in fields})
    if hint is str:
        return text
    if hint is bool:
        return st.booleans()
    if hint is int:
        assert wire is not None
        return INTEGERS[wire.type]
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return st.sampled_from(hint)
    raise TypeError(hint)


def travelled(message: Any) -> Any:
    """Through bytes, as on the wire."""
    return type(message).FromString(message.SerializeToString())


CASES = [(name, kind) for name, union in WRAPPERS.items() for kind in get_args(union)]
QUICK = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize(("wrapper", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
def test_what_streams_carry_comes_back_as_it_went(wrapper: str, kind: type) -> None:
    @QUICK
    @given(values_of(kind))
    def check(value: Any) -> None:
        assert unwrap(wrapper, travelled(wrap(wrapper, value))) == value

    check()


@pytest.mark.parametrize("method", UNARY)
def test_what_operators_say_and_hear_comes_back_as_it_went(method: str) -> None:
    for kind in operator_types(method):

        @QUICK
        @given(values_of(kind))
        def check(value: Any) -> None:
            assert decode(type(value), travelled(encode(value))) == value

        check()


def test_events_for_those_who_watch() -> None:
    event = operator.ClusterEvent(1, "task_status", "a", "f", "t", "words")
    assert decode(operator.ClusterEvent, travelled(encode(event))) == event


def test_every_message_of_a_stream_has_a_value() -> None:
    """A call, event or message that no machine knows would be dropped silently."""
    for name, union in WRAPPERS.items():
        (module,) = [
            m
            for m in (framework_service_pb2, agent_service_pb2, executor_service_pb2)
            if name in m.DESCRIPTOR.message_types_by_name
        ]
        fields = module.DESCRIPTOR.message_types_by_name[name].oneofs[0].fields
        assert {field.message_type.name for field in fields} == {kind.__name__ for kind in get_args(union)}


def test_every_field_of_a_message_has_a_place_in_its_value() -> None:
    seen: set[type] = set()

    def visit(kind: Any) -> None:
        for item in get_args(kind):
            visit(item)
        if not dataclasses.is_dataclass(kind) or kind in seen or not isinstance(kind, type):
            return
        seen.add(kind)
        if kind not in (Resources, ResourceRequest, Reservation, offers.Operation):
            descriptor = type(encode(next_value(kind))).DESCRIPTOR
            assert {f.name for f in descriptor.fields} == {f.name for f in dataclasses.fields(kind)}, kind
        for hint in get_type_hints(kind).values():
            visit(hint)

    for union in WRAPPERS.values():
        visit(union)
    for method in UNARY:
        for kind in operator_types(method):
            visit(kind)
    assert len(seen) > 80


def next_value(kind: type) -> Any:
    """Any value at all, without searching for one."""
    fields = {}
    for field, hint in get_type_hints(kind).items():
        hint = getattr(hint, "__supertype__", hint)
        origin = get_origin(hint)
        if origin in (typing.Union, types.UnionType):
            fields[field] = None
        elif origin is tuple:
            fields[field] = ()
        elif origin is not None:
            fields[field] = {}
        elif dataclasses.is_dataclass(hint):
            fields[field] = next_value(hint) if hint not in (Resources, ResourceRequest) else hint()
        else:
            fields[field] = hint(0) if issubclass(hint, IntEnum) else hint()
    return kind(**fields)


# --- what this version does not know ---


def test_unknown_enum_values_become_the_zero_value() -> None:
    message = tasks_pb2.TaskStatus(task_id="t", state=99, reason=98, source=97)  # type: ignore[arg-type]
    status = decode(TaskStatus, travelled(message))
    assert (status.state, status.reason) == (TaskState.UNSPECIFIED, StatusReason.UNSPECIFIED)
    assert status.task_id == "t"


def unknown_field(message: Any, number: int = 1000, words: bytes = b"from the future") -> Any:
    """The message with a field that this version does not know (length-delimited)."""
    tag = (number << 3) | 2
    extra = bytes([(tag & 0x7F) | 0x80, (tag >> 7) & 0x7F]) + bytes([len(words)]) + words
    return type(message).FromString(message.SerializeToString() + extra)


def test_unknown_fields_are_no_error() -> None:
    call = wrap("FrameworkCall", framework.Kill("t", 5))  # type: ignore[arg-type]
    assert unwrap("FrameworkCall", unknown_field(call)) == framework.Kill("t", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_unknown_kind_of_message_is_ignored(wrapper: str) -> None:
    kind = type(wrap(wrapper, next_value(get_args(WRAPPERS[wrapper])[0])))
    assert unwrap(wrapper, unknown_field(kind())) is None


def test_an_unknown_operation_is_kept_to_be_refused_by_name() -> None:
    message = unknown_field(offers_pb2.Operation(operation_id="o"))
    assert decode(offers.Operation, message) == offers.Operation("o", None)


# --- what a peer should not send ---


def test_concrete_amounts_are_above_zero() -> None:
    message = resources_pb2.Resources(
        cpus_milli=-5, mem_bytes=0, custom_milli={"a": -1, "b": 0, "c": 1, "gpus": 7, "cpus": 3, "ports": 1}
    )
    assert decode(Resources, message) == Resources({"c": 1})


def test_requests_keep_what_is_below_zero_so_that_it_is_refused() -> None:
    message = resources_pb2.ResourceRequest(cpus_milli=-5, custom_milli={"gpus": 500, "a": -1})
    assert decode(ResourceRequest, message).scalars == {"cpus": -5, "gpus": 500, "a": -1}


def test_ports_that_overlap_are_merged() -> None:
    spans = [resources_pb2.PortRange(first=5, last=9), resources_pb2.PortRange(first=1, last=6)]
    assert decode(Resources, resources_pb2.Resources(ports=spans)).ports == (PortRange(1, 9),)
