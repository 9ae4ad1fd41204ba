"""A bare grpc.aio server that plays the server's part of recorded conversations, byte for byte, and does nothing else.

`python bare_grpc.py RECORDING` prints its port. RECORDING is a pickled list of conversations, each a list of (whether the client says it,
bytes); a client names its own by the metadata `conversation`, its number. What a process spends on this is the price of gRPC alone: of
its Python layer, its core and the event loop, without encoding, deciding or storing anything.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path
from typing import Any

import grpc.aio

METHOD = "/bare/Talk"
Conversation = list[tuple[bool, bytes]]
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


class Conversations(grpc.GenericRpcHandler):
    """Plays whichever conversation a client names."""

    def __init__(self, conversations: list[Conversation]) -> None:
        self._conversations = conversations

    def service(self, handler_call_details: Any) -> Any:
        number = int(dict(handler_call_details.invocation_metadata)["conversation"])

        async def play(_: Any, context: Any) -> None:
            for clients, text in self._conversations[number]:
                if clients:
                    await context.read()
                else:
                    await context.write(text)

        return grpc.stream_stream_rpc_method_handler(play)


async def serve(conversations: list[Conversation]) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((Conversations(conversations),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def talk(address: str, conversations: list[Conversation]) -> None:
    """The clients' part, of all conversations at once."""

    async def one(channel: Any, number: int, conversation: Conversation) -> None:
        call = channel.stream_stream(METHOD)(metadata=(("conversation", str(number)),))
        for clients, text in conversation:
            if clients:
                await call.write(text)
            else:
                assert await call.read() == text
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        await asyncio.gather(*(one(channel, *numbered) for numbered in enumerate(conversations)))


class Recorder(grpc.GenericRpcHandler):
    """Passes streams on to another server, and remembers what was said on each."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.conversations: list[Conversation] = []

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def pass_on(_: Any, context: Any) -> None:
            conversation: Conversation = []
            self.conversations.append(conversation)
            call: Any = self._channel.stream_stream(method)()

            async def up() -> None:
                while (text := await context.read()) is not grpc.aio.EOF:
                    conversation.append((True, text))
                    await call.write(text)
                await call.done_writing()

            pump = asyncio.create_task(up())
            try:
                while (text := await call.read()) is not grpc.aio.EOF:
                    conversation.append((False, text))
                    await context.write(text)
            finally:
                pump.cancel()
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(pass_on)


if __name__ == "__main__":
    asyncio.run(serve(pickle.loads(Path(sys.argv[1]).read_bytes())))
