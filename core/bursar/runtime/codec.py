"""Wire messages ↔ core values.

A core dataclass and the message of the same name have the same fields, so one compiled converter per dataclass is derived from
its type hints; only quantities, reservations and attributes have forms of their own. Apart from the servers and clients this
is the only module that knows `bursar.v1`. Unknown fields and enum values are kept out of the machines' way: an unknown enum
value becomes the zero value (M-01).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

from bursar.core.ids import DeviceUuid
from bursar.core.resources import (
    GPUS,
    PortRange,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    normalize_ports,
)
from bursar.v1 import (
    agent_service_pb2,
    containers_pb2,
    errors_pb2,
    executor_service_pb2,
    framework_service_pb2,
    gangs_pb2,
    images_pb2,
    lives_pb2,
    offers_pb2,
    operator_service_pb2,
    resources_pb2,
    rules_pb2,
    sessions_pb2,
    tasks_pb2,
)

if TYPE_CHECKING:
    from bursar.core.messages.offers import Operation

T = TypeVar("T")
Converter = Callable[[Any], Any]

_MODULES = (
    resources_pb2,
    errors_pb2,
    containers_pb2,
    lives_pb2,
    tasks_pb2,
    offers_pb2,
    gangs_pb2,
    framework_service_pb2,
    agent_service_pb2,
    operator_service_pb2,
    rules_pb2,
    sessions_pb2,
    executor_service_pb2,
    images_pb2,
)


def _members(wrapper: str) -> tuple[type, ...]:
    """The dataclasses of the messages that wrap one of several.

    What each says is imported when it is first wanted: a client of the command line has no use for most of it, and
    hundreds of dataclasses are a third of the time in which `bursar` starts.
    """
    if wrapper in ("FrameworkCall", "FrameworkEvent"):
        from bursar.core.messages import framework

        return get_args(getattr(framework, wrapper))
    if wrapper in ("ExecutorCall", "ExecutorEvent"):
        from bursar.core.messages import executor

        return get_args(getattr(executor, wrapper))
    from bursar.core.messages import agent

    return get_args(getattr(agent, wrapper))


@functools.cache
def message_class(name: str) -> type[Message]:
    """The generated class of `bursar.v1.<name>`."""
    for module in _MODULES:
        found = getattr(module, name, None)
        if found is not None:
            return cast("type[Message]", found)
    raise LookupError(f"no message bursar.v1.{name}")


# --- forms of their own ---------------------------------------------------------------------------------------------


def _encode_amounts(scalars: Mapping[str, int]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    custom: dict[str, int] = {}
    for kind, amount in scalars.items():
        if kind == "cpus":
            fields["cpus_milli"] = amount
        elif kind == "mem":
            fields["mem_bytes"] = amount
        elif kind == "disk":
            fields["disk_bytes"] = amount
        else:
            custom[kind] = amount
    if custom:
        fields["custom_milli"] = custom
    return fields


def _decode_amounts(message: Any, keep_negative: bool) -> dict[str, int]:
    scalars: dict[str, int] = {}
    for kind, amount in (("cpus", message.cpus_milli), ("mem", message.mem_bytes), ("disk", message.disk_bytes)):
        if amount > 0 or (amount and keep_negative):
            scalars[kind] = amount
    for kind, amount in message.custom_milli.items():
        if (
            kind not in ("cpus", "mem", "disk", GPUS, "ports")
            and (amount > 0 or (amount and keep_negative))
            or kind == GPUS
            and keep_negative
        ):
            scalars[kind] = amount
    return scalars


def _encode_ports(ports: Iterable[PortRange]) -> list[Any]:
    return [resources_pb2.PortRange(first=span.first, last=span.last) for span in ports]


def _decode_ports(ranges: Any) -> tuple[PortRange, ...]:
    return (
        normalize_ports(PortRange(span.first, span.last) for span in ranges if span.first <= span.last)
        if ranges
        else ()
    )


def encode_resources(value: Resources) -> Any:
    """Concrete resources."""
    return resources_pb2.Resources(
        **_encode_amounts(value.scalars), ports=_encode_ports(value.ports), device_uuids=sorted(value.devices)
    )


def decode_resources(message: Any) -> Resources:
    """Concrete resources; amounts that are not positive are dropped."""
    devices = frozenset(DeviceUuid(uuid) for uuid in message.device_uuids)
    return Resources(_decode_amounts(message, False), _decode_ports(message.ports), devices)


def encode_request(value: ResourceRequest) -> Any:
    """Resources asked for."""
    return resources_pb2.ResourceRequest(
        **_encode_amounts(value.scalars),
        ports=_encode_ports(value.ports),
        gpus=value.gpus,
        device_uuids=list(value.devices),
        port_count=value.port_count,
    )


def decode_request(message: Any) -> ResourceRequest:
    """Resources asked for; negative amounts are kept, so that the master can refuse them by name."""
    devices = tuple(DeviceUuid(uuid) for uuid in message.device_uuids)
    return ResourceRequest(
        _decode_amounts(message, True), _decode_ports(message.ports), message.gpus, devices, message.port_count
    )


def _encode_reservation(value: Reservation) -> Any:
    return resources_pb2.Reservation(
        type=cast(Any, int(value.type)),
        holder=value.holder,
        principal=value.principal,
        labels=dict(value.labels),
    )


def _decode_reservation(message: Any) -> Reservation:
    kind = _decode_enum(ReservationType)(message.type)
    return Reservation(kind, message.holder, message.principal, tuple(sorted(message.labels.items())))


def _encode_attributes(value: Mapping[str, str | int]) -> dict[str, Any]:
    return {
        name: resources_pb2.AttributeValue(text=item)
        if isinstance(item, str)
        else resources_pb2.AttributeValue(scalar_milli=item)
        for name, item in value.items()
    }


def _decode_attributes(message: Any) -> dict[str, str | int]:
    return {
        name: item.scalar_milli if item.WhichOneof("value") == "scalar_milli" else item.text
        for name, item in message.items()
    }


def _encode_operation(value: Operation) -> Any:
    message = offers_pb2.Operation(operation_id=value.operation_id)
    if value.operation is not None:
        getattr(message, _snake(type(value.operation).__name__)).CopyFrom(encode(value.operation))
    return message


def _decode_operation(message: Any) -> Operation:
    from bursar.core.messages import offers

    which = message.WhichOneof("operation")
    kinds = {"launch": offers.Launch, "reserve": offers.Reserve, "unreserve": offers.Unreserve}
    return offers.Operation(
        message.operation_id, None if which is None else decode(kinds[which], getattr(message, which))
    )


#: By the names of their classes, as the messages are found.
_SPECIAL: dict[str, tuple[Converter, Converter]] = {
    "Resources": (encode_resources, decode_resources),
    "ResourceRequest": (encode_request, decode_request),
    "Reservation": (_encode_reservation, _decode_reservation),
    "Operation": (_encode_operation, _decode_operation),
}

#: Core field names that differ from the wire's, because the wire says the unit or the form.
_ATTRIBUTE_FIELDS = frozenset({"attributes"})


# --- derived forms --------------------------------------------------------------------------------------------------


def _decode_enum(kind: type[IntEnum]) -> Converter:
    values = {int(member): member for member in kind}
    zero = values[0]
    return lambda number: values.get(number, zero)


def _is_plain(hint: Any) -> bool:
    hint = getattr(hint, "__supertype__", hint)
    return hint in (str, int, bool, bytes)


@functools.cache
def _encoder(cls: type) -> Converter:
    """Compile the converter from a dataclass to its message."""
    if cls.__name__ in _SPECIAL:
        return _SPECIAL[cls.__name__][0]
    message = message_class(cls.__name__)
    plain: list[str] = []
    converted: list[tuple[str, Converter]] = []
    for field, hint in _fields(cls):
        converter = _field_encoder(cls, field, hint)
        if converter is None:
            plain.append(field)
        else:
            converted.append((field, converter))

    def run(value: Any) -> Any:
        fields = {name: getattr(value, name) for name in plain}
        for name, convert in converted:
            item = getattr(value, name)
            if item is not None:
                fields[name] = convert(item)
        return message(**fields)

    return run


def _field_encoder(cls: type, field: str, hint: Any) -> Converter | None:
    origin = get_origin(hint)
    if field in _ATTRIBUTE_FIELDS and cls.__name__ != "Device":
        return _encode_attributes
    if origin in (Union, types.UnionType):
        inner = next(item for item in get_args(hint) if item is not type(None))
        return _field_encoder(cls, field, inner) or (lambda value: value)
    if _is_plain(hint):
        return None
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return int
    if origin is tuple:
        inner = get_args(hint)[0]
        if _is_plain(inner):
            return list
        item = _encoder(inner)
        return lambda values: [item(value) for value in values]
    if origin in (dict, Mapping, typing.Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return dict
    if dataclasses.is_dataclass(hint):
        target = cast(type, hint)
        return lambda value: _encoder(target)(value)
    raise TypeError(f"{cls.__name__}.{field}: no wire form for {hint}")


@functools.cache
def _decoder(cls: type) -> Converter:
    """Compile the converter from a message to its dataclass."""
    if cls.__name__ in _SPECIAL:
        return _SPECIAL[cls.__name__][1]
    steps = [(field, _field_decoder(cls, field, hint)) for field, hint in _fields(cls)]
    plain = [name for name, step in steps if step is None]
    converted = [(name, step) for name, step in steps if step is not None]

    def run(message: Any) -> Any:
        fields = {name: getattr(message, name) for name in plain}
        for name, step in converted:
            fields[name] = step(message)
        return cls(**fields)

    return run


def _field_decoder(cls: type, field: str, hint: Any) -> Converter | None:
    """Return what takes the field out of the *parent* message; None for a plain attribute."""
    origin = get_origin(hint)
    if field in _ATTRIBUTE_FIELDS and cls.__name__ != "Device":
        return lambda message: _decode_attributes(getattr(message, field))
    if origin in (Union, types.UnionType):
        inner = next(item for item in get_args(hint) if item is not type(None))
        step = _field_decoder(cls, field, inner) or (lambda message: getattr(message, field))
        return lambda message: step(message) if message.HasField(field) else None
    if _is_plain(hint):
        return None
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        convert = _decode_enum(hint)
        return lambda message: convert(getattr(message, field))
    if origin is tuple:
        inner = get_args(hint)[0]
        if _is_plain(inner):
            return lambda message: tuple(getattr(message, field))
        item = _decoder(inner)
        return lambda message: tuple([item(value) for value in getattr(message, field)])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return lambda message: dict(getattr(message, field))
    if dataclasses.is_dataclass(hint):
        target = cast(type, hint)
        return lambda message: _decoder(target)(getattr(message, field))
    raise TypeError(f"{cls.__name__}.{field}: no wire form for {hint}")


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(cls)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))


def encode(value: Any) -> Any:
    """A core value as the message of the same name."""
    return cast(Any, _encoder)(type(value))(value)


def decode(cls: type[T], message: Any) -> T:
    """A message as the core value of the same name."""
    return cast(T, cast(Any, _decoder)(cls)(message))


# --- wrappers with a oneof ------------------------------------------------------------------------------------------


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


@functools.cache
def _wrapper_fields(wrapper: str) -> tuple[dict[type, str], dict[str, type]]:
    descriptor = message_class(wrapper).DESCRIPTOR
    fields: Any = descriptor.oneofs[0].fields
    by_message = {field.message_type.name: field.name for field in fields}
    by_type = {member: by_message[member.__name__] for member in _members(wrapper)}
    return by_type, {name: member for member, name in by_type.items()}


def wrap(wrapper: str, value: Any) -> Any:
    """A core value inside the wrapper message (`FrameworkCall`, `FrameworkEvent`, `AgentMessage`, `MasterMessage`)."""
    return wrap_encoded(wrapper, type(value), encode(value))


def wrap_encoded(wrapper: str, cls: type, message: Any) -> Any:
    """The same for a value of class `cls` that is a message already."""
    by_type, _ = _wrapper_fields(wrapper)
    return message_class(wrapper)(**{by_type[cls]: message})


def unwrap(wrapper: str, message: Any) -> Any | None:
    """The core value inside a wrapper message; None for one that this version does not know."""
    which = message.WhichOneof(message.DESCRIPTOR.oneofs[0].name)
    if which is None:
        return None
    return decode(_wrapper_fields(wrapper)[1][which], getattr(message, which))


def operator_types(method: str) -> tuple[type, type]:
    """The core request and response of a method of OperatorService."""
    from bursar.core.messages import operator

    return getattr(operator, f"{method}Request"), getattr(operator, f"{method}Response")
