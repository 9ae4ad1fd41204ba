"""A session with a running task, from the operators' side."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

import grpc
import grpc.aio

from bursar.core.errors import BursarError, ErrorDetail
from bursar.runtime.client import error_detail, to_bursar_error, unreachable
from bursar.runtime.codec import decode
from bursar.runtime.frames import WINDOW_BYTES, FrameSender, input_frame
from bursar.v1 import sessions_pb2

_GONE = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


class TaskSession:
    """A program next to a task, or files of it. One reader; use it as `async with`, or call `close`.

    Made by `OperatorClient.open_session`. What is read is credited when the next piece is asked for, so a slow reader slows the program.
    """

    def __init__(self, call: Any, address: str) -> None:
        self._call, self._address = call, address
        self._sender = FrameSender(lambda frame: call.write(sessions_pb2.OpenTaskSessionRequest(frame=frame)))
        self._owed = 0
        #: How it ended, once `read` has given None.
        self.exit_code: int | None = None

    @classmethod
    async def begin(cls, call: Any, address: str, task: str, start: sessions_pb2.SessionStart) -> TaskSession:
        """Say what is wanted."""
        session = cls(call, address)
        # A call that is refused says why when it is read.
        with contextlib.suppress(*_GONE):
            await call.write(sessions_pb2.OpenTaskSessionRequest(task=task, start=start))
            await session._sender.send(credit_bytes=WINDOW_BYTES)
        return session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and the program with it if it still runs. Idempotent."""
        self._sender.end()
        self._call.cancel()

    async def read(self) -> tuple[int, bytes] | None:
        """Some output: 1 for stdout or 2 for stderr, and bytes; None at the end. Raises BursarError."""
        try:
            while True:
                await self._give_credit()
                response = await self._call.read()
                if response is grpc.aio.EOF:
                    raise BursarError(
                        "the session ended without an exit code", "update master and agent to one version"
                    )
                match response.frame.WhichOneof("frame"):
                    case "output":
                        self._owed = len(response.frame.output.data)
                        return (2 if response.frame.output.stderr else 1), response.frame.output.data
                    case "credit_bytes":
                        self._sender.credited(response.frame.credit_bytes)
                    case "exit_code":
                        self.exit_code = response.frame.exit_code
                        self._sender.end()
                        return None
                    case "error":
                        raise BursarError(decode(ErrorDetail, response.frame.error))
        except grpc.aio.AioRpcError as error:
            self._sender.end()
            if error.code() is grpc.StatusCode.INTERNAL and error_detail(error) is None:
                # What gRPC says of itself when the other end goes while something is being sent.
                raise unreachable(self._address, "the session was broken off") from None
            raise to_bursar_error(error, self._address) from None
        except BaseException:
            self._sender.end()
            raise

    async def write(self, data: bytes) -> bool:
        """Give input, as fast as it is taken; False where nobody takes it any more."""
        try:
            return await self._sender.send_data(data, input_frame)
        except _GONE:
            return False

    async def end_input(self) -> None:
        """No more input follows."""
        with contextlib.suppress(*_GONE):
            await self._sender.send(input_end=True)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's new size."""
        with contextlib.suppress(*_GONE):
            await self._sender.send(resize=sessions_pb2.TerminalSize(rows=rows, columns=columns))

    async def _give_credit(self) -> None:
        if self._owed:
            owed, self._owed = self._owed, 0
            with contextlib.suppress(*_GONE):
                await self._sender.send(credit_bytes=owed)
