"""What a client says in confidence is in no log line and no table: prompts, answers, keys, passwords, cookies."""

import json
from typing import Any

import httpx

from tests.cluster import Cluster
from tests.ledger import settled_usage

PROMPT = "zzpromptzz"
ANSWER = "zzanswerzz"
PASSWORD = "zzpasswordzz-correct-horse"
BAD_KEY = "inf_zzbadkeyzz"
COOKIE = "zzcookiezz"
MARKS = (PROMPT, ANSWER, "zzpasswordzz", "zzbadkeyzz", COOKIE)
SCHEMA = {"type": "object", "properties": {PROMPT: {"type": "boolean"}}, "required": [PROMPT]}
TOOL = {"type": "function", "function": {"name": "f", "description": PROMPT, "parameters": SCHEMA}}


def bodies() -> list[dict[str, Any]]:
    """Requests that end well and badly, with a mark wherever a text can stand."""
    say = [{"role": "user", "content": f"Say exactly: {ANSWER} {PROMPT}"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": json.dumps({PROMPT: True})}}
    answered = [
        *say,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": PROMPT},
    ]
    refused = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"not": {}}}}
    guide = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    return [
        {"messages": say},
        {"messages": say, "stream": True, "user": PROMPT, "metadata": {"a": PROMPT}, PROMPT: PROMPT},
        {"messages": answered, "tools": [TOOL]},
        {"messages": say, "tools": [TOOL], "tool_choice": "required"},
        {"messages": say, "response_format": guide, "stop": [PROMPT]},
        {"messages": [{"role": "user", "content": PROMPT * 20_000}]},
        {"messages": say, "temperature": PROMPT},
        {"messages": PROMPT},
        {"messages": say, "response_format": refused},
        {"messages": say, "model": PROMPT},
    ]


async def test_logs_and_tables_hold_no_secret_and_no_text(product: Cluster) -> None:
    account_id, key = await product.add_account("5")
    product.start("api1", "api", jwt_key="j" * 32)
    await product.wait_ready(node="api1")
    async with httpx.AsyncClient(timeout=30, headers={"authorization": f"Bearer {key}"}) as client:
        answers = [
            await client.post(product.base_url() + "/chat/completions", json={"model": "sim/plain"} | body)
            for body in bodies()
        ]
        answers.append(
            await client.post(
                product.base_url() + "/completions", json={"model": "sim/plain", "prompt": PROMPT, "max_tokens": 4}
            )
        )
        made = (await client.post(product.base_url() + "/keys", json={"name": "second"})).json()["key"]
        await client.post(product.base_url() + "/chat/completions", content=PROMPT.encode())
        await client.get(product.base_url() + f"/usage?status={PROMPT}")
    async with httpx.AsyncClient(timeout=30, headers={"cookie": f"inferbase_session={COOKIE}"}) as stranger:
        await stranger.get(product.base_url() + "/credits", headers={"authorization": f"Bearer {BAD_KEY}"})
        await stranger.get(product.base_url() + "/credits")
        root = product.base_url("api1").removesuffix("/api/v1/inference")
        own = {"origin": root, "sec-fetch-site": "same-origin"}
        person = {"email": "a@example.com", "password": PASSWORD}
        registered = await stranger.post(f"{root}/api/v1/auth/register", json=person, headers=own)
        wrong = person | {"password": PASSWORD + "!"}
        refused = await stranger.post(f"{root}/api/v1/auth/login", json=wrong, headers=own)

    assert (registered.status_code, refused.status_code) == (201, 401), registered.text
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 200, 200, 200, 200, 400, 400, 400, 400, 404, 200]
    assert ANSWER in answers[0].text
    await settled_usage(product.database, answers[0].json()["id"])
    for name in list(product.processes):
        product.processes[name].stop()
    secrets = (*MARKS, key, made, *registered.cookies.values())
    for path in product.folder.glob("*.log"):
        said = path.read_text()
        assert '"event":' in said, f"{path.name} tells nothing"
        assert [secret for secret in secrets if secret in said] == [], path.name
    dump = await dumped(product)
    assert account_id in dump
    assert [secret for secret in secrets if secret in dump] == []


async def dumped(product: Cluster) -> str:
    """Return every row of every table as text."""
    async with product.database.acquire() as connection:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        )
        rows = []
        for table in tables:
            name = table["tablename"]
            rows += [str(row[0]) for row in await connection.fetch(f'SELECT t::text FROM "{name}" AS t')]
    return "\n".join(rows)
