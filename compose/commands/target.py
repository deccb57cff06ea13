"""Which Inferbase a command speaks to, and how it gets there.

In this order: the stores that DATABASE_URL and REDIS_URL name; those of a running `inferbase up`; those of an `up` that
has stopped, whose embedded servers are started for the length of the command. Secrets come from the settings, else from
the data folder.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from compose.data_folder import DEFAULT, DataFolder
from compose.errors import CommandFailed
from shared.settings import Settings, given_store_urls, load_settings

if TYPE_CHECKING:
    from shared.connections import Connection, Redis

T = TypeVar("T")

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Data folder of the `inferbase up` to work on, running or stopped; DATABASE_URL and REDIS_URL, "
        "where set, come first.",
    ),
]
DATA_DIR = DEFAULT


class Target(msgspec.Struct, frozen=True):
    """Open connections to both stores."""

    connection: "Connection"
    redis: "Redis"
    settings: Settings


def with_target(data_dir: Path, work: Callable[[Target], Awaitable[T]]) -> T:
    """Run `work` on the stores; CommandFailed says which Inferbase could not be found."""
    import asyncio

    with settings_of(data_dir) as settings:
        return asyncio.run(_run(settings, work))


@contextmanager
def settings_of(data_dir: Path, *, process: str = "") -> Iterator[Settings]:
    """Yield complete settings; embedded stores of a stopped `up` run as long as this is open.

    A `process` that was given all it needs by its environment looks nowhere else.
    """
    folder = DataFolder(data_dir)
    settings = _with_secrets(load_settings(), folder)
    if process and _is_complete(settings, process):
        yield settings
        return
    database_url, redis_url = given_store_urls()
    ready = None if database_url and redis_url else _running(folder)
    if ready is not None:
        database_url, redis_url = database_url or ready[0], redis_url or ready[1]
    with ExitStack() as stack:
        if not (database_url and redis_url):
            database_url, redis_url = _start(stack, folder, database_url, redis_url)
        stores = msgspec.structs.replace(settings.stores, database_url=database_url, redis_url=redis_url)
        yield msgspec.structs.replace(settings, stores=stores)


def _is_complete(settings: Settings, process: str) -> bool:
    database_url, redis_url = given_store_urls()
    return bool(redis_url and settings.secrets.wire_key and (database_url or process == "worker"))


async def _run(settings: Settings, work: Callable[[Target], Awaitable[T]]) -> T:
    from shared.connections import open_database, open_redis, postgres_errors, redis_errors

    async with AsyncExitStack() as stack:
        stack.enter_context(redis_errors())
        stack.enter_context(postgres_errors())
        database = await stack.enter_async_context(open_database(settings.stores, role="cli"))
        redis = await stack.enter_async_context(open_redis(settings.stores, role="cli"))
        connection = await stack.enter_async_context(database.acquire())
        return await work(Target(connection, redis, settings))


def _with_secrets(settings: Settings, folder: DataFolder) -> Settings:
    kept = folder.kept_secrets()
    if kept is None:
        return settings
    given = settings.secrets
    chosen = msgspec.structs.replace(
        given,
        key_pepper=given.key_pepper or kept.key_pepper,
        wire_key=given.wire_key or kept.wire_key,
        jwt_key=given.jwt_key or kept.jwt_key,
    )
    return msgspec.structs.replace(settings, secrets=chosen)


def _running(folder: DataFolder) -> tuple[str, str] | None:
    """Return the addresses of a running `up`; a ready-file whose processes are gone counts for nothing."""
    ready = folder.ready()
    if ready is None or not any(_alive(process.pid) for process in ready.processes):
        return None
    return ready.database_url, ready.redis_url


def _start(stack: ExitStack, folder: DataFolder, database_url: str, redis_url: str) -> tuple[str, str]:
    from compose.stores import free_port, open_postgres, open_valkey

    if not folder.has_cluster:
        raise CommandFailed(
            f"there is no Inferbase in {folder.path}: run `inferbase up`, or set DATABASE_URL and REDIS_URL"
        )
    stack.enter_context(folder.locked())
    if not database_url:
        database_url = stack.enter_context(open_postgres(folder.path / "postgres", free_port())).url
    if not redis_url:
        redis_url = stack.enter_context(open_valkey(folder.path / "valkey", free_port())).url
    return database_url, redis_url


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
