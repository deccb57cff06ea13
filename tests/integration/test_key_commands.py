"""`inferbase key …`, as an operator types it."""

import time

from shared.catalogue import Model
from shared.connections import Database
from shared.database import accounts, api_keys, models
from shared.pricing import Prices
from shared.settings import Settings
from tests.integration.test_account_commands import run


async def test_a_key_is_made_with_all_its_options_and_listed_so(settings: Settings, database: Database) -> None:
    account = await accounts.create_account(database, email="a@example.com")
    await models.add_model(database, Model(id="Org/m", engine="simulator", context=10, prices=Prices(1, 1, 2)))
    room = ["--scope", "keys", "--scope", "credits", "--model", "Org/m", "--expires-in", "2h", "--budget", "1.5"]

    status, made = await run(settings, "key", "create", account.id, *room, "--rpm", "3", "--tpm", "4")
    _, listed = await run(settings, "key", "list", account.id)

    assert status == 0, made
    assert made.pop("key").startswith(made["prefix"])
    assert listed["data"] == [made]
    assert (made["scopes"], made["allowed_models"]) == (["keys", "credits"], ["Org/m"])
    assert (made["budget"], made["spent"], made["remaining"]) == ("1.500000000", "0.000000000", "1.500000000")
    assert 7100 < made["expires_at"] - time.time() <= 7200
    assert (made["rpm"], made["tpm"], made["status"]) == (3, 4, "active")


async def test_a_key_for_a_model_that_does_not_exist_is_not_made(settings: Settings, database: Database) -> None:
    account = await accounts.create_account(database, email="a@example.com")

    status, said = await run(settings, "key", "create", account.id, "--model", "Org/none")

    assert status == 1
    assert "there is no model Org/none" in said
    assert await api_keys.list_keys(database, account.id) == ([], False)
