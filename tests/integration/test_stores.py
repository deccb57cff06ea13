"""The embedded servers: real, private, durable, and never left behind."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
import redis as redis_client

from compose import postgres_user
from compose.errors import StartFailed
from compose.stores import Postgres, Valkey, free_port, open_postgres, open_valkey

ORPHAN_SECONDS = 10.0

_numbers = itertools.count()

OPENER = """
import sys, time
from pathlib import Path
from compose.stores import free_port, open_postgres, open_valkey
folder = Path(sys.argv[1])
with open_postgres(folder / "postgres", free_port(), durable=False) as postgres, open_valkey(
    folder / "valkey", free_port()
) as valkey:
    print(postgres.pid, valkey.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(store_folder: Path) -> Path:
    path = store_folder / f"stores-{next(_numbers)}"
    path.mkdir(mode=0o711)
    return path


async def test_postgres_speaks_utf8_and_sorts_by_bytes(postgres_server: Postgres) -> None:
    connection = await asyncpg.connect(postgres_server.url)
    try:
        found = await connection.fetchrow("SELECT current_setting('server_encoding'), 'a' > 'B' COLLATE \"default\"")
    finally:
        await connection.close()

    assert tuple(found or ()) == ("UTF8", True)


async def test_postgres_refuses_a_wrong_password(postgres_server: Postgres) -> None:
    wrong = f"postgresql://inferbase:wrong@127.0.0.1:{postgres_server.port}/postgres"

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


def test_valkey_refuses_a_client_without_password(valkey_server: Valkey) -> None:
    with redis_client.Redis(port=valkey_server.port) as client, pytest.raises(redis_client.AuthenticationError):
        client.ping()


def test_valkey_never_evicts_and_appends_every_write(valkey_server: Valkey) -> None:
    with redis_client.Redis.from_url(valkey_server.url) as client:
        found = client.config_get("maxmemory-policy", "appendonly", "appendfsync", "save")

    assert found == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}


def test_data_lasts_from_one_start_to_the_next(folder: Path) -> None:
    async def run(url: str, statement: str) -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    with (
        open_postgres(folder / "postgres", free_port()) as postgres,
        open_valkey(folder / "valkey", free_port()) as valkey,
    ):
        asyncio.run(run(postgres.url, "CREATE TABLE kept AS SELECT 7 AS seven"))
        with redis_client.Redis.from_url(valkey.url) as client:
            client.set("kept", "yes")

    with (
        open_postgres(folder / "postgres", free_port()) as postgres,
        open_valkey(folder / "valkey", free_port()) as valkey,
    ):
        assert asyncio.run(run(postgres.url, "SELECT seven FROM kept")) == 7
        with redis_client.Redis.from_url(valkey.url) as client:
            assert client.get("kept") == b"yes"


@pytest.mark.parametrize("name", ["[1]", "with space", 'quote"d', "Ünï"])
def test_the_name_of_the_folder_does_not_matter(folder: Path, name: str) -> None:
    with (
        open_postgres(folder / name / "postgres", free_port(), durable=False),
        open_valkey(folder / name / "valkey", free_port()) as valkey,
        redis_client.Redis.from_url(valkey.url) as client,
    ):
        assert client.set("kept", "yes")
        assert (folder / name / "valkey" / "appendonlydir").is_dir()


def test_data_folders_are_closed_to_others(folder: Path) -> None:
    with open_postgres(folder / "postgres", free_port(), durable=False), open_valkey(folder / "valkey", free_port()):
        modes = {
            name: (folder / name).stat().st_mode & 0o777
            for name in ("postgres", "valkey", "postgres/cluster", "postgres/password", "valkey/valkey.conf")
        }

    assert modes == {
        "postgres": 0o700,
        "valkey": 0o700,
        "postgres/cluster": 0o700,
        "postgres/password": 0o600,
        "valkey/valkey.conf": 0o600,
    }


def test_killing_the_parent_leaves_no_orphan(folder: Path) -> None:
    opener = subprocess.Popen([sys.executable, "-c", OPENER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert opener.stdout is not None
    with opener.stdout:
        pids = [int(word) for word in opener.stdout.readline().split()]

    opener.kill()
    opener.wait()

    assert len(pids) == 2
    give_up = time.monotonic() + ORPHAN_SECONDS
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < give_up, pids
        time.sleep(0.02)


def test_a_store_survives_sigkill_and_comes_back_with_its_data(folder: Path) -> None:
    with open_valkey(folder / "valkey", free_port()) as server:
        with redis_client.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
        os.kill(server.pid, signal.SIGKILL)
        while server.running:
            time.sleep(0.01)

        server.start()

        with redis_client.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"


def test_a_broken_cluster_is_one_clear_error(folder: Path) -> None:
    cluster = folder / "postgres" / "cluster"
    cluster.mkdir(parents=True, mode=0o700)
    (cluster / "PG_VERSION").write_text("9\n")

    with pytest.raises(StartFailed, match=r"Postgres did not start: .+"):
        Postgres(folder / "postgres", free_port()).start()


def test_a_broken_append_file_is_one_clear_error(folder: Path) -> None:
    with open_valkey(folder, free_port()):
        pass
    manifest = folder / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")

    with pytest.raises(StartFailed, match=r"Valkey did not start: .+"):
        Valkey(folder, free_port()).start()


def test_postgres_also_runs_where_user_namespaces_are_forbidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_user, "_NAMESPACE", ("false",))

    with open_postgres(folder / "postgres", free_port(), durable=False) as server:
        owner = Path(f"/proc/{server.pid}").stat().st_uid

    assert owner == (postgres_user.NOBODY if os.geteuid() == 0 else os.geteuid())


def test_a_data_folder_survives_the_move_between_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for namespace in (postgres_user._NAMESPACE, ("false",), postgres_user._NAMESPACE):
        monkeypatch.setattr(postgres_user, "_NAMESPACE", namespace)

        with open_postgres(folder / "postgres", free_port(), durable=False) as server:
            assert server.running


def test_a_taken_port_is_one_clear_error(folder: Path, valkey_server: Valkey) -> None:
    with pytest.raises(StartFailed, match=r"Valkey did not start: .*port"):
        Valkey(folder, valkey_server.port).start()


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
