"""`inferbase account …` and operators' keys, as an operator types them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.connections import Database
from shared.settings import Settings, environment_of, inherited_environment
from tests.house.sources import ROOT
from tests.integration.session_rig import ADMIN, AUTH, PASSWORD, Site, new_email, open_site, with_sessions


@pytest.fixture
async def site(settings: Settings, database: Database) -> AsyncIterator[Site]:
    async with open_site(with_sessions(settings), database) as site:
        yield site


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return str(file)


async def run(settings: Settings, *arguments: str) -> tuple[int, Any]:
    """Return exit status and what a command printed: its JSON, or the line on stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "compose.cli",
        *arguments,
        env=inherited_environment() | environment_of(settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, json.loads(out) if process.returncode == 0 else err.decode()


async def test_an_operator_is_made_and_logs_in(settings: Settings, site: Site, password_file: str) -> None:
    email = new_email()

    status, made = await run(
        settings, "account", "create", "--email", email.upper(), "--admin", "--password-file", password_file
    )

    assert status == 0, made
    assert (made["email"], made["admin"]) == (email, True)
    browser = site.browser()
    assert (await browser.login(email)).json()["admin"] is True
    assert (await browser.get(f"{ADMIN}/accounts")).status_code == 200
    status, said = await run(settings, "account", "create", "--email", email, "--password-file", password_file)
    assert status == 1 and "already" in said


async def test_a_user_is_promoted_and_demoted(settings: Settings, site: Site) -> None:
    browser = site.browser()
    email = (await browser.register()).json()["email"]
    assert (await browser.get(f"{ADMIN}/accounts")).status_code == 404

    for verb, expected in (("promote", 200), ("demote", 404)):
        assert (await run(settings, "account", verb, email))[0] == 0
        async with asyncio.timeout(5):
            while (await browser.get(f"{ADMIN}/accounts")).status_code != expected:
                await asyncio.sleep(0.01)
    assert (await run(settings, "account", "promote", new_email()))[0] == 1


async def test_an_account_is_stopped_and_let_go_on(settings: Settings, site: Site) -> None:
    browser, account_id = await site.user()

    for verb, expected in (("deactivate", 403), ("activate", 200)):
        status, shown = await run(settings, "account", verb, account_id)
        assert (status, shown["active"]) == (0, verb == "activate")
        async with asyncio.timeout(5):
            while (await browser.get(f"{AUTH}/me")).status_code != expected:
                await asyncio.sleep(0.01)
    status, said = await run(settings, "account", "deactivate", "acct_nobody")
    assert status == 1 and "there is no account" in said


async def test_a_key_of_an_operator_is_made_by_the_command_line(settings: Settings, site: Site) -> None:
    _, account_id = await site.user()

    _, made = await run(settings, "key", "create", account_id, "--admin")

    bearer = {"authorization": f"Bearer {made['key']}"}
    assert (await site.browser().client.get(f"{ADMIN}/accounts", headers=bearer)).status_code == 200


async def test_a_bad_operator_is_not_made(settings: Settings, site: Site, tmp_path: Path, password_file: str) -> None:
    (tmp_path / "short").write_text("short")

    for arguments in (
        ("--email", "a@b.cc", "--admin"),
        ("--email", "a@b.cc", "--password-file", str(tmp_path / "short")),
        ("--email", "a@b.cc", "--password-file", str(tmp_path / "missing")),
        ("--email", "nobody", "--password-file", password_file),
    ):
        assert (await run(settings, "account", "create", *arguments))[0] == 1, arguments
    assert await site.database.fetchval("SELECT count(*) FROM accounts") == 0
