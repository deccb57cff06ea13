"""A TCP proxy on loopback that can go silent: connections stay open and nothing passes, as behind a dead link."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PART_BYTES = 64 * 1024


class Proxy:
    """Relays to one port of loopback until it is told to be `silent`; what was sent meanwhile passes afterwards."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def silence(self) -> None:
        """Let nothing pass, in either direction."""
        self._open.clear()

    def heal(self) -> None:
        """Let everything pass again, late as it is."""
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection both ways until one side closes it."""
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._relay(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError):
                while part := await source.read(PART_BYTES):
                    await self._open.wait()
                    sink.write(part)
                    await sink.drain()
        finally:
            sink.close()


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """Yield a proxy to a port of loopback."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
