"""Each process has a user of Redis and a role of Postgres of its own, with what it needs and no more."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis as redis_client

from shared import keys
from shared.connections import Database, open_redis
from shared.queue.settlements import SettlementQueue
from shared.settings import SettlementSettings, StoreSettings
from tests.deploy.guarded import grant, open_guarded, use_everything
from tests.deploy.stores import DATABASE_PROCESSES, ROLES, GuardedValkey, open_guarded_valkey, url_as
from tests.ledger import assert_clean

# What each user must not do: it would be a way to prompts, money, other processes or the server.
MISUSE = {
    "default": ["GET inferbase:catalogue", "CONFIG GET *", "INFO", "ACL WHOAMI"],
    "api": [
        "XRANGE settlement:{m} - +",
        "DEL settlement:{m}",
        "XREADGROUP GROUP settlement me STREAMS settlement:{m} >",
        "GET arq:job:{m}:chatcmpl-1",
        "DEL log:{m}:chatcmpl-1",
        "SET presence:own_1 x",
        "ZPOPMIN arq:queue:{m}:interactive",
        "DEL state:{m}:chatcmpl-1",
        "SUBSCRIBE commands:own_1",
        "KEYS *",
        "FLUSHALL",
        "CONFIG GET *",
        "SCRIPT FLUSH",
        "DEL revoked:{m}:key_1",
    ],
    "worker": [
        "XRANGE settlement:{m} - +",
        "DEL settlement:{m}",
        "XTRIM settlement:{m} MAXLEN 0",
        "XRANGE dead-letters:{m} - +",
        "SET inferbase:catalogue x",
        "SET node:node_1 1",
        "DEL revoked:{m}:key_1",
        "DEL tombstone:{m}:chatcmpl-1",
        "SET arq:job:{m}:chatcmpl-1 x",
        "GET minute-tokens:key_1",
        "ZREM slots:key_1 chatcmpl-1",
        "GET throttle:login:1.2.3.4",
        "PUBLISH commands:own_2 x",
        "SUBSCRIBE channel:{m}:chatcmpl-1",
        "SCAN 0",
        "FLUSHDB",
        "CONFIG GET *",
    ],
    "settlement": [
        "XADD settlement:{m} * f forged",
        "XRANGE log:{m}:chatcmpl-1 - +",
        "GET arq:job:{m}:chatcmpl-1",
        "HGETALL state:{m}:chatcmpl-1",
        "SET inferbase:catalogue x",
        "PUBLISH channel:{m}:chatcmpl-1 x",
        "GET minute-requests:key_1",
        "SCAN 0",
    ],
    "janitor": [
        "DEL settlement:{m}",
        "XREADGROUP GROUP settlement me STREAMS settlement:{m} >",
        "DEL tombstone:{m}:chatcmpl-1",
        "GET minute-tokens:key_1",
        "GET throttle:login:1.2.3.4",
        "SUBSCRIBE channel:{m}:chatcmpl-1",
        "KEYS *",
        "FLUSHALL",
    ],
    "operator": ["CONFIG GET *", "FLUSHALL", "ACL SETUSER evil on nopass ~* +@all", "SHUTDOWN", "KEYS *"],
}
STATEMENTS = {
    "api": [
        "UPDATE transfers SET amount = 1",
        "DELETE FROM transfers",
        "TRUNCATE transfers",
        "UPDATE usage SET cost = 0",
        "DELETE FROM requests",
        "UPDATE requests SET hold = 0",
        "UPDATE api_keys SET admin = TRUE",
        "UPDATE api_keys SET scopes = '{completions}'",
        "UPDATE key_budgets SET budget = 10",
        "UPDATE users SET admin = TRUE",
        "UPDATE users SET password_hash = ''",
        "DELETE FROM accounts",
        "DELETE FROM schema_migrations",
        "CREATE TABLE mine (id INT)",
        "ALTER TABLE transfers DISABLE TRIGGER ALL",
        "SET ROLE inferbase_janitor",
    ],
    "settlement": [
        "UPDATE transfers SET amount = 1",
        "DELETE FROM usage",
        "SELECT * FROM users",
        "SELECT digest FROM api_keys",
        "SELECT email FROM accounts",
        "SELECT * FROM sessions",
        "INSERT INTO requests DEFAULT VALUES",
        "UPDATE accounts SET active = TRUE",
        "UPDATE models SET prompt_price = 0",
        "SELECT deposit('t', 'a', 1, 'r')",
        "CREATE TEMPORARY TABLE mine (id INT)",
    ],
    "janitor": [
        "UPDATE transfers SET amount = 1",
        "DELETE FROM usage",
        "SELECT * FROM users",
        "SELECT digest FROM api_keys",
        "UPDATE models SET prompt_price = 0",
        "DELETE FROM models",
        "UPDATE accounts SET active = TRUE",
        "SELECT deposit('t', 'a', 1, 'r')",
    ],
}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedValkey]:
    """A Valkey with the shipped users."""
    with open_guarded_valkey(tmp_path_factory.mktemp("guarded") / "valkey") as server:
        yield server


async def test_the_product_needs_no_more_than_its_users_and_roles_may(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    async with open_guarded(database, database_url, tmp_path) as guarded:
        await use_everything(guarded)

        await assert_clean(database, guarded.cluster.redis)
        assert guarded.valkey.denied() == []
    logs = [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines()]
    assert [line for line in logs if "permission" in line.lower() or "NOPERM" in line] == []


@pytest.mark.parametrize("user", MISUSE)
def test_a_user_of_redis_is_refused_what_it_does_not_need(user: str, valkey: GuardedValkey) -> None:
    url = valkey.url_as("api").replace(f"api:{valkey.secret('redis_api')}@", "")
    with redis_client.Redis.from_url(url if user == "default" else valkey.url_as(user)) as client:
        for command in MISUSE[user]:
            with pytest.raises(redis_client.exceptions.NoPermissionError):
                client.execute_command(*command.split())


@pytest.mark.parametrize("user", ["api", "worker"])
def test_a_script_may_do_no_more_than_its_caller(user: str, valkey: GuardedValkey) -> None:
    with redis_client.Redis.from_url(valkey.url_as(user)) as client:
        with pytest.raises(redis_client.exceptions.ResponseError, match=r"ACL|ermission"):
            client.eval("return redis.call('DEL', 'settlement:{m}')", 0)
        with pytest.raises(redis_client.exceptions.NoPermissionError):
            client.eval("return 1", 1, "inferbase:secrets")


async def test_an_operator_may_look_for_dead_letters_and_replay_them(valkey: GuardedValkey) -> None:
    async with open_redis(StoreSettings(redis_url=valkey.url_as("operator")), role="cli") as redis:
        queue = SettlementQueue(redis, SettlementSettings())
        await redis.xadd(keys.dead_letters("m"), {"f": b"1", "kind": "finish", "reason": "invalid"})

        names = [name async for name in redis.scan_iter(match=keys.DEAD_LETTERS_OF_ALL)]
        (letter,) = await queue.dead_letters("m")

        assert [keys.model_of_dead_letters(name) for name in names] == ["m"]
        assert await queue.newest_dead_letter("m") == letter.entry_id
        assert await queue.replay("m", [letter.entry_id]) == 1


def test_a_wrong_password_is_refused(valkey: GuardedValkey) -> None:
    url = valkey.url_as("api").replace(valkey.secret("redis_api"), "wrong")
    with redis_client.Redis.from_url(url) as client, pytest.raises(redis_client.exceptions.AuthenticationError):
        client.ping()


@pytest.mark.parametrize("role", DATABASE_PROCESSES)
async def test_a_role_of_postgres_is_refused_what_it_does_not_need(
    role: str, database: Database, database_url: str
) -> None:
    await grant(database)
    connection = await asyncpg.connect(url_as(database_url, role))
    for statement in STATEMENTS[role]:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_the_roles_may_be_made_again_and_name_every_table(database: Database) -> None:
    await grant(database)
    await grant(database)

    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    text = ROLES.read_text()
    assert {row["tablename"] for row in tables if row["tablename"] not in text} == {"schema_migrations"}


async def test_nobody_else_can_connect(database: Database, database_url: str) -> None:
    await grant(database)
    await database.execute("DROP ROLE IF EXISTS inferbase_worker")
    await database.execute("CREATE ROLE inferbase_worker LOGIN PASSWORD 'worker'")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(url_as(database_url, "worker"))
    await database.execute("DROP ROLE inferbase_worker")
