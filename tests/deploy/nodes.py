"""API nodes that do what they are told, to be put behind the shipped proxy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Act = Callable[["FakeNode", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeNode:
    """Counts connections and keeps the heads that it was sent; `act` does the rest, once per connection."""

    def __init__(self, act: Act) -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.port = 0
        self._act = act

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._act(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next request's head; IncompleteReadError at the end of the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head


@asynccontextmanager
async def open_node(act: Act) -> AsyncIterator[FakeNode]:
    """Yield a listening node and close it."""
    node = FakeNode(act)
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    node.port = server.sockets[0].getsockname()[1]
    try:
        yield node
    finally:
        server.close()


async def answer(node: FakeNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of the connection with its own head."""
    while True:
        head = await node.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(head), head))


async def die(node: FakeNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a request and close without an answer."""
    await node.head(reader)


async def refuse(node: FakeNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer 503 as a node does that stops."""
    await node.head(reader)
    body = b'{"error":{"message":"stopping","type":"server_error","param":null,"code":"dependency_unavailable"}}'
    writer.write(
        b"HTTP/1.1 503 Service Unavailable\r\nx-request-id: req_node\r\nretry-after: 7\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )
