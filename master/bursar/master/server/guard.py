"""Who speaks, and whether this is theirs to say: looked at once for every call, before anybody hears of it.

A client's certificate says who it is by URIs among its alternative names: `bursar://agent/gpu-1`, `bursar://framework/sweep`,
`bursar://operator/ann`. A token says it by the master's file of tokens. Kinds are kept apart so that whoever steals what a framework shows
cannot pose as an agent.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.master.server.tokens import AGENT, FRAMEWORK, KINDS, OPERATOR, PRINCIPAL, Peer, TokenFile
from bursar.runtime.rpc import abort
from bursar.runtime.telemetry import logger

SCHEME = "bursar://"
#: Which kinds a service is for; what is not named here is for all.
SERVICES = {
    "bursar.v1.AgentService": frozenset({AGENT}),
    "bursar.v1.FrameworkService": frozenset({FRAMEWORK}),
    "bursar.v1.OperatorService": frozenset({OPERATOR}),
}
#: What a framework may ask of its own tasks.
OF_FRAMEWORKS = frozenset({"ReadTaskLog", "OpenTaskSession", "GetTask", "ExplainFramework"})
#: Says no more than that the master serves; probes have nothing to show. `Watch` beside it would be a stream that stays.
OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
#: Between two lines in the log about those who were not let in.
_SAY_EVERY_S = 1.0

_PEER: ContextVar[Peer | None] = ContextVar("peer", default=None)


def peer() -> Peer | None:
    """Who makes this call; None where nobody is asked who they are."""
    return _PEER.get()


def principal() -> str:
    """The name of who makes this call; empty where nobody is asked."""
    known = _PEER.get()
    return "" if known is None else known.principal


class Refused(Exception):
    """Not let in."""

    def __init__(self, reason: ErrorReason, message: str, hint: str) -> None:
        super().__init__(message)
        self.detail = ErrorDetail(reason, message, hint)


class Guard(grpc.aio.ServerInterceptor):
    """Lets in whom a certificate or a token names, to what is theirs."""

    def __init__(self, tokens: TokenFile | None) -> None:
        self._tokens = tokens
        self._said_at, self._unsaid = 0.0, 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in OPEN_METHODS:
            return handler
        path, _, method = str(handler_call_details.method).rpartition("/")
        service = path.removeprefix("/")
        kinds = SERVICES.get(service, frozenset(KINDS))
        if service == "bursar.v1.OperatorService" and method in OF_FRAMEWORKS:
            kinds |= {FRAMEWORK}

        async def admit(context: Any) -> None:
            try:
                known = self.identify(context)
                if not known.kinds & kinds:
                    raise _not_theirs(known, kinds, method)
            except Refused as refused:
                self._say(context, refused, method)
                await abort(context, refused.detail)
            else:
                _PEER.set(known)

        return _guarded(handler, admit)

    def identify(self, context: Any) -> Peer:
        """Who makes a call. Raises Refused."""
        by_certificate = _by_certificate(context)
        by_token = self._by_token(context)
        if by_certificate is None and by_token is None:
            raise self._nobody(context)
        if by_certificate is None or by_token is None:
            known = by_certificate or by_token
            assert known is not None
            return known
        if by_certificate.principal != by_token.principal:
            raise Refused(
                ErrorReason.UNAUTHENTICATED,
                f"the certificate is {by_certificate.principal}'s, and the token {by_token.principal}'s",
                "show one of the two",
            )
        return Peer(by_token.principal, by_token.kinds | by_certificate.kinds)

    def _by_token(self, context: Any) -> Peer | None:
        shown = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not shown:
            return None
        scheme, _, token = shown[0].partition(" ")
        if len(shown) > 1 or scheme.lower() != "bearer" or not token:
            raise Refused(ErrorReason.UNAUTHENTICATED, "the authorization is no token", "send: Bearer TOKEN")
        if self._tokens is None:
            raise Refused(
                ErrorReason.UNAUTHENTICATED,
                "this master knows no tokens",
                "show a certificate, or give the master --tokens FILE",
            )
        known = self._tokens.find(token.strip())
        if known is None:
            raise Refused(
                ErrorReason.UNAUTHENTICATED,
                "the token is nobody's",
                "ask an operator for one; the master's --tokens file has the hash of each",
            )
        return known

    def _nobody(self, context: Any) -> Refused:
        name = _common_name(context)
        if name is not None:
            return Refused(
                ErrorReason.UNAUTHENTICATED,
                f"the certificate (CN={name}) does not say who this is",
                f"have it issued with an alternative name such as URI:{SCHEME}agent/NAME, {SCHEME}framework/NAME"
                f" or {SCHEME}operator/NAME",
            )
        hint = "show a token: --token-file or BURSAR_TOKEN_FILE" if self._tokens else "show a certificate"
        return Refused(ErrorReason.UNAUTHENTICATED, "nobody knows who this is", hint)

    def _say(self, context: Any, refused: Refused, method: str) -> None:
        """One line a second at most: whoever is not let in shall not fill the disk."""
        now = time.monotonic()
        if now - self._said_at < _SAY_EVERY_S:
            self._unsaid += 1
            return
        logger().warning(
            "not let in", peer=context.peer(), method=method, reason=refused.detail.message, others=self._unsaid
        )
        self._said_at, self._unsaid = now, 0


def _not_theirs(known: Peer, kinds: frozenset[str], method: str) -> Refused:
    mine, needed = " and ".join(sorted(known.kinds)), " or ".join(sorted(kinds))
    return Refused(
        ErrorReason.PERMISSION_DENIED,
        f"{known.principal} may speak as {mine}, and {method} is for the kind {needed}",
        "use a certificate or a token of that kind",
    )


def _by_certificate(context: Any) -> Peer | None:
    """Whom the alternative names of a certificate name. Raises Refused."""
    names, kinds = set(), set()
    for raw in context.auth_context().get("peer_uri", ()):
        uri = raw.decode("utf-8", "replace")
        if not uri.startswith(SCHEME):
            continue
        kind, _, name = uri.removeprefix(SCHEME).partition("/")
        if kind not in KINDS or not PRINCIPAL.fullmatch(name):
            raise Refused(
                ErrorReason.UNAUTHENTICATED,
                f"the certificate says {uri!r}",
                f"{SCHEME}KIND/PRINCIPAL is understood, with the kinds {', '.join(KINDS)}",
            )
        kinds.add(kind)
        names.add(name)
    if len(names) > 1:
        raise Refused(
            ErrorReason.UNAUTHENTICATED,
            f"the certificate names several principals: {', '.join(sorted(names))}",
            "have one issued for each",
        )
    return Peer(names.pop(), frozenset(kinds)) if names else None


def _common_name(context: Any) -> str | None:
    """Of the client's certificate; None where it showed none."""
    shown = context.auth_context()
    if "x509_pem_cert" not in shown:
        return None
    return next((value.decode("utf-8", "replace") for value in shown.get("x509_common_name", ())), "")


def _guarded(handler: Any, admit: Callable[[Any], Awaitable[None]]) -> Any:
    """The same handler, after `admit` has returned."""
    sort = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    inner = getattr(handler, sort)

    async def call(request: Any, context: Any) -> Any:
        await admit(context)
        return await inner(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await admit(context)
        async with contextlib.aclosing(inner(request, context)) as responses:
            async for response in responses:
                yield response

    make = getattr(grpc, f"{sort}_rpc_method_handler")
    return make(
        stream if inspect.isasyncgenfunction(inner) else call,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
