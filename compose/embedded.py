"""The stores of a run of `up`: those that the settings name, embedded ones for the rest."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from compose.data_folder import DataFolder
from compose.ports import free_port
from compose.postgres import Postgres
from compose.supervisor import Server, Supervised, Supervisor
from compose.terminal import step
from compose.valkey import Valkey
from shared.settings import Settings, StoreSettings, given_store_urls


@contextmanager
def open_embedded(settings: Settings, folder: DataFolder, supervisor: Supervisor) -> Iterator[Settings]:
    """Yield the settings with both addresses filled in; embedded servers are supervised and stopped at the end."""
    database_url, redis_url = given_store_urls()
    with ExitStack() as stack:
        if not database_url:
            postgres = Postgres(folder.path / "postgres", free_port(), log=folder.logs / "postgres.log")
            stack.enter_context(_supervised("postgres", postgres, postgres.port, folder, supervisor))
            database_url = postgres.url
        if not redis_url:
            valkey = Valkey(folder.path / "valkey", free_port(), log=folder.logs / "valkey.log")
            stack.enter_context(_supervised("valkey", valkey, valkey.port, folder, supervisor))
            redis_url = valkey.url
        stores: StoreSettings = msgspec.structs.replace(settings.stores, database_url=database_url, redis_url=redis_url)
        yield msgspec.structs.replace(settings, stores=stores)


@contextmanager
def _supervised(role: str, server: Server, port: int, folder: DataFolder, supervisor: Supervisor) -> Iterator[None]:
    with step(role) as current:
        supervisor.start(Supervised(role, 0, server, log=folder.logs / f"{role}.log", port=port))
        current.detail = f"on port {port}"
    try:
        yield
    finally:
        with step(role) as current:
            supervisor.stop(role)
            current.detail = "stopped"
