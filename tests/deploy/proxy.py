"""The shipped proxy configuration on loopback: filled in by envsubst, as the image of nginx does, and run by nginx."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.cluster import ROOT, free_port

FOLDER: Final = ROOT / "infra" / "proxy"
PATH: Final = f"{os.environ['PATH']}:/usr/sbin"
HOSTS: Final = "127.0.0.1 localhost api.example.com"
START_SECONDS: Final = 10.0
STARTS_MOST: Final = 3


class Proxy(NamedTuple):
    """A running nginx: its ports, its process, and the folder that it writes to."""

    port: int
    status_port: int
    pid: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def tool(name: str) -> str:
    """Return where a Debian tool is; Debian keeps servers out of a user's PATH."""
    found = shutil.which(name, path=PATH)
    assert found, f"{name} is missing: run  make system-packages"
    return found


def fill(values: Mapping[str, str]) -> str:
    """Return the template with every variable that it names filled in; one without a value is an error here."""
    template = (FOLDER / "nginx.conf.template").read_text()
    names = set(re.findall(r"\$\{(\w+)\}", template))
    assert names == set(values), names ^ set(values)
    return subprocess.run(
        [tool("envsubst"), " ".join(f"${{{name}}}" for name in sorted(names))],
        input=template,
        env={"PATH": PATH, **values},
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def configuration(folder: Path, nodes: Sequence[int], *, trusted: str = "unix:") -> tuple[Path, int, int]:
    """Write the configuration for API nodes on these ports; return the file, the port and the port for checks."""
    port, status_port = free_port(), free_port()
    values = {
        "PROXY_LISTEN": f"127.0.0.1:{port}",
        "PROXY_STATUS_LISTEN": f"127.0.0.1:{status_port}",
        "PROXY_HOSTS": HOSTS,
        "PROXY_SCHEME": "http",
        "PROXY_TRUSTED": trusted,
        "PROXY_UPSTREAMS": " ".join(f"server 127.0.0.1:{node} max_fails=1 fail_timeout=2s;" for node in nodes),
        "PROXY_FOLDER": str(FOLDER),
        "PROXY_RUN": str(folder),
    }
    file = folder / "nginx.conf"
    file.write_text(fill(values))
    return file, port, status_port


@contextmanager
def open_proxy(folder: Path, nodes: Sequence[int], *, trusted: str = "unix:") -> Iterator[Proxy]:
    """Yield nginx before API nodes on these ports, and end it."""
    for _ in range(STARTS_MOST):
        file, port, status_port = configuration(folder, nodes, trusted=trusted)
        with (folder / "nginx.log").open("ab") as log:
            process = subprocess.Popen(
                [tool("nginx"), "-c", str(file), "-g", "daemon off;"], stdout=log, stderr=log, start_new_session=True
            )
        if _is_up(process, folder):
            break
    assert process.poll() is None, (folder / "nginx.log").read_text()
    try:
        yield Proxy(port, status_port, process.pid, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _is_up(process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    """Tell whether it started: its pid file is written once its sockets listen. A port may be taken meanwhile."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "nginx.pid").exists():
            return True
        time.sleep(0.01)
    return False


class Answer(NamedTuple):
    """The first response of a raw connection; status 0: closed or silent without one."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    closed: bool


async def exchange(port: int, *parts: bytes, pause_seconds: float = 0.0, patience_seconds: float = 3.0) -> Answer:
    """Send `parts` with pauses between them and return the first response; status 0: closed without one."""
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, closed = b"", False
    sending = asyncio.ensure_future(_send(writer, parts, pause_seconds))
    try:
        while not _is_whole(received):
            async with asyncio.timeout(patience_seconds):
                part = await reader.read(65536)
            closed = not part
            if closed:
                break
            received += part
    except TimeoutError:
        pass
    except ConnectionError:
        closed = True
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return _parsed(received, time.monotonic() - begin, closed)


async def _send(writer: asyncio.StreamWriter, parts: Sequence[bytes], pause_seconds: float) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause_seconds)


def _is_whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def _parsed(received: bytes, seconds: float, closed: bool) -> Answer:
    if not received.startswith(b"HTTP/1."):  # nothing, or a body alone, as HTTP/0.9 has it
        return Answer(0, {}, received, seconds, closed)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body, seconds, closed)
