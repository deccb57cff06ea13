"""The API process from start to stop: a stop that was asked for drops no stream and ends by itself."""

import asyncio
import os
import signal
import socket

import httpx
import msgspec
import pytest

from api.serve import serve
from shared.errors import InferbaseError, SettingsInvalid
from shared.settings import SecretSettings, Settings, StoreSettings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on(settings: Settings, **api: object) -> Settings:
    """Return settings with a changed API section."""
    return msgspec.structs.replace(settings, api=msgspec.structs.replace(settings.api, **api))


async def ready(url: str) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while True:
            try:
                if (await client.get(url + "/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_process_cleanly(settings: Settings, number: signal.Signals) -> None:
    port = free_port()
    serving = asyncio.create_task(serve(on(settings, port=port)))
    await ready(f"http://127.0.0.1:{port}")

    os.kill(os.getpid(), number)

    await asyncio.wait_for(serving, 10)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/livez")


async def test_a_taken_port_is_told(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(InferbaseError, match="could not start"):
            await serve(on(settings, port=taken.getsockname()[1]))


async def test_a_missing_store_is_told(settings: Settings) -> None:
    nowhere = StoreSettings(database_url=f"postgresql://x@127.0.0.1:{free_port()}/x", store_timeout_seconds=1)

    with pytest.raises(InferbaseError, match="could not start"):
        await serve(msgspec.structs.replace(settings, stores=nowhere))


async def test_missing_secrets_are_told_before_anything_is_opened(settings: Settings) -> None:
    with pytest.raises(SettingsInvalid, match="KEY_PEPPER"):
        await serve(msgspec.structs.replace(settings, secrets=SecretSettings(wire_key="w" * 32)))
