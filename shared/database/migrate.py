"""Brings a database to the current schema; forward only, safe to run twice and from several nodes at once.

Files `migrations/NNNN_verb_noun.sql` are applied in order, each in a transaction of its own, and remembered with a
checksum: a file that changed after it was applied is an error, not a surprise. Our own runner because the kept tools
bring another driver beside asyncpg, and this is all we need: an advisory lock, checksums, lock and statement timeouts.
"""

import hashlib
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from shared.connections import postgres_errors
from shared.errors import SettingsInvalid

FOLDER: Final = Path(__file__).with_name("migrations")
LOCK_KEY: Final = 7_381_204_517  # of the advisory lock; any number that nobody else uses
LOCK_SECONDS: Final = 30
STATEMENT_SECONDS: Final = 300


class Migration(msgspec.Struct, frozen=True):
    """One file of the folder; the checksum is the SHA-256 of its text."""

    name: str
    text: str
    checksum: str


def read_migrations(folder: Path = FOLDER) -> list[Migration]:
    """Return all migrations in order; AssertionError where two share a number."""
    found = [_read(path) for path in sorted(folder.glob("*.sql"))]
    numbers = [migration.name[:4] for migration in found]
    assert len(set(numbers)) == len(numbers), numbers
    return found


async def migrate(database_url: str, migrations: list[Migration] | None = None) -> list[str]:
    """Apply what is missing and return the names of what was applied.

    Raises SettingsInvalid where the database holds a migration that is unknown here or differs from ours, and
    DependencyUnavailable where Postgres cannot be reached.
    """
    wanted = read_migrations() if migrations is None else migrations
    with postgres_errors():
        connection = await asyncpg.connect(database_url, timeout=LOCK_SECONDS)
        try:
            await connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
            await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
            await connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
            return await _apply_missing(connection, wanted)
        finally:
            await connection.close()


async def _apply_missing(connection: "asyncpg.Connection[asyncpg.Record]", wanted: list[Migration]) -> list[str]:
    await connection.execute(
        """
        CREATE TABLE IF NOT EXISTS schema_migrations (
            name TEXT PRIMARY KEY,
            checksum TEXT NOT NULL,
            applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
        )
        """
    )
    rows = await connection.fetch("SELECT name, checksum FROM schema_migrations")
    applied = {row["name"]: row["checksum"] for row in rows}
    _check(applied, wanted)
    missing = [migration for migration in wanted if migration.name not in applied]
    for migration in missing:
        async with connection.transaction():
            await connection.execute(migration.text)
            await connection.execute(
                "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)", migration.name, migration.checksum
            )
    return [migration.name for migration in missing]


def _check(applied: dict[str, str], wanted: list[Migration]) -> None:
    known = {migration.name: migration.checksum for migration in wanted}
    for name, checksum in applied.items():
        if name not in known:
            raise SettingsInvalid(f"The database is newer than this program: it has the migration {name}.")
        if known[name] != checksum:
            raise SettingsInvalid(f"The migration {name} was changed after it was applied to this database.")


def _read(path: Path) -> Migration:
    text = path.read_text(encoding="utf-8")
    return Migration(name=path.stem, text=text, checksum=hashlib.sha256(text.encode()).hexdigest())
