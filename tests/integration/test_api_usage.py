"""Transactions, usage, sums and receipts over HTTP: filters, pages, CSV, and charges that can be recomputed."""

import csv
import io
import itertools
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import msgspec
import pytest

from shared import ids
from shared.connections import Database
from shared.database import api_keys, transfers
from shared.database.requests import Reserve, reserve_many
from shared.database.settlements import settle_many
from shared.errors import DependencyUnavailable
from tests.integration.account_product import Product
from tests.integration.ledger_factories import Customer, make_finish, make_key, make_reserve

NOW = int(time.time())


class Book(msgspec.Struct):
    """A customer with a book of requests, and how to ask for it."""

    product: Product
    database: Database
    customer: Customer
    headers: dict[str, str]

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.product.client.get(path, params=query, headers=self.headers)

    async def ids_of(self, path: str, **query: Any) -> list[str]:
        """Return the request ids of a list, else its rows' ids."""
        response = await self.get(path, **query)
        assert response.status_code == 200, response.text
        return [row["request_id"] or row["id"] for row in response.json()["data"]]

    async def run(self, *, closed_ago: timedelta = timedelta(), **changes: Any) -> Reserve:
        """Reserve and settle one request, closed some time ago; `changes` go where they belong."""
        usage = {
            name: changes.pop(name) for name in ("prompt", "cached", "completion", "status", "code") if name in changes
        }
        row = make_reserve(self.customer, **changes)
        await reserve_many(self.database, [row])
        await settle_many(self.database, [make_finish(row, **usage)])
        if closed_ago:
            for table in ("usage", "transfers"):
                await self.database.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
                await self.database.execute(
                    f"UPDATE {table} SET created_at = now() - $2::INTERVAL WHERE request_id = $1",
                    row.request_id,
                    closed_ago,
                )
        return row


@pytest.fixture
async def book(product: Product, database: Database) -> AsyncIterator[Book]:
    account_id, headers = await product.customer("1")
    (key,), _ = await api_keys.list_keys(database, account_id)
    yield Book(product, database, Customer(account_id, key.id), headers)


async def test_usage_is_filtered_by_model_key_and_status(book: Book) -> None:
    other = await make_key(book.database, book.customer)
    plain = await book.run()
    modelled = await book.run(model="org/b")
    keyed = await book.run(key_id=other)
    failed = await book.run(status="failed")

    every = [row.request_id for row in (failed, keyed, modelled, plain)]
    assert await book.ids_of("/usage") == every
    assert await book.ids_of("/usage", model="org/b") == [modelled.request_id]
    assert await book.ids_of("/usage", api_key_id=other) == [keyed.request_id]
    assert await book.ids_of("/usage", status="failed") == [failed.request_id]
    assert await book.ids_of("/usage", status="completed", model="org/model") == [keyed.request_id, plain.request_id]


async def test_lists_are_filtered_by_time_from_the_first_moment_and_before_the_second(book: Book) -> None:
    old, middle, new = [await book.run(closed_ago=timedelta(hours=hours)) for hours in (3, 2, 0)]

    def ago(hours: float) -> int:
        return int(time.time() - hours * 3600)

    for path in ("/usage", "/credits/transactions"):
        assert await book.ids_of(path, created_after=ago(2.5), created_before=ago(1)) == [middle.request_id]
        assert await book.ids_of(path, created_before=ago(2.5)) == [old.request_id]
        assert (await book.ids_of(path, created_after=ago(1)))[0] == new.request_id
        assert await book.ids_of(path, created_after=ago(-1)) == []
        moment = (await book.get(path, created_before=ago(2.5))).json()["data"][0]["created_at"]
        assert await book.ids_of(path, created_after=moment, created_before=moment + 1) == [old.request_id]
        assert await book.ids_of(path, created_before=moment) == []


async def test_transactions_are_filtered_by_type_and_request(book: Book) -> None:
    first, second = await book.run(), await book.run()
    await transfers.deposit(
        book.database, transfer_id="txn_late", account_id=book.customer.id, amount=5, description="late"
    )

    assert await book.ids_of("/credits/transactions", type="deduction") == [second.request_id, first.request_id]
    assert (await book.ids_of("/credits/transactions", type="deposit"))[0] == "txn_late"
    assert await book.ids_of("/credits/transactions", type="refund") == []
    assert await book.ids_of("/credits/transactions", request_id=first.request_id) == [first.request_id]
    assert await book.ids_of("/credits/transactions", request_id=first.request_id, type="deposit") == []
    assert await book.ids_of("/credits/transactions", request_id=ids.new_chat_id()) == []
    page = await book.get("/credits/transactions", type="deposit", limit=1)
    assert page.json()["has_more"]
    rest = await book.get("/credits/transactions", type="deposit", after="txn_late")
    assert [row["description"] for row in rest.json()["data"]] == ["first"]


async def test_pages_of_a_filtered_list_meet_without_gap_or_repeat(book: Book) -> None:
    made = [(await book.run(model=f"org/{n % 2}")).request_id for n in range(10)]

    for path, query in (("/usage", {"model": "org/1"}), ("/credits/transactions", {"type": "deduction"})):
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = (await book.get(path, limit=2, **query, **after)).json()
            seen += [row["request_id"] for row in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        assert seen == (made[1::2] if path == "/usage" else made)[::-1]


BAD = [
    "status=done",
    "status=",
    "model=a%00",
    "model=a&model=b",
    "created_after=yesterday",
    "created_after=-1",
    "created_before=1e9",
    "created_before=999999999999999999999",
    "api_key_id=" + "x" * 257,
    "format=xml",
    "account_id=acct_1",
    "type=deposit",
    "limit=101",
]


async def test_a_bad_filter_is_400(book: Book) -> None:
    for query in BAD:
        answer = await book.product.client.get(f"/usage?{query}", headers=book.headers)
        assert answer.status_code == 400, query
        assert answer.json()["error"]["param"] == query.partition("=")[0]
    for query in ("type=gift", "status=completed", "request_id=", "format=csv&limit=100001"):
        answer = await book.product.client.get(f"/credits/transactions?{query}", headers=book.headers)
        assert answer.status_code == 400, query


@pytest.mark.parametrize("path", ["/usage", "/credits/transactions"])
async def test_csv_has_the_columns_and_rows_of_the_json(book: Book, path: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("api.export.PAGE_ROWS", 3)
    for _ in range(7):
        await book.run()

    listed = (await book.get(path, limit=100)).json()["data"]
    by_format = await book.get(path, format="csv")
    by_header = await book.product.client.get(path, headers={**book.headers, "accept": "text/csv"})

    rows = list(csv.DictReader(io.StringIO(by_format.text)))
    assert by_format.text == by_header.text
    assert by_format.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_format.headers["content-disposition"].startswith("attachment")
    assert by_format.text.count("\r\n") == len(rows) + 1
    assert rows == [{name: _as_text(value) for name, value in row.items()} for row in listed]


async def test_csv_is_bounded_filtered_and_goes_on_behind_a_row(book: Book) -> None:
    made = [(await book.run(model=f"org/{n % 2}")).request_id for n in range(6)]

    first = await book.get("/usage", format="csv", model="org/0", limit=2)
    rows = list(csv.DictReader(io.StringIO(first.text)))
    rest = await book.get("/usage", format="csv", model="org/0", after=rows[-1]["id"])

    assert [row["request_id"] for row in rows] == [made[4], made[2]]
    assert [row["request_id"] for row in csv.DictReader(io.StringIO(rest.text))] == [made[0]]


async def test_csv_of_nothing_is_its_header(book: Book) -> None:
    empty = await book.get("/usage", format="csv")

    assert empty.text.splitlines()[0].startswith("id,object,request_id,created_at,model")
    assert len(empty.text.splitlines()) == 1


async def test_a_csv_that_breaks_off_is_not_taken_for_a_whole_one(book: Book, monkeypatch: Any) -> None:
    monkeypatch.setattr("api.export.PAGE_ROWS", 2)
    for _ in range(5):
        await book.run()
    ledger = book.product.nodes[0].ledger
    query, pages = ledger.query, itertools.count()

    async def fail_at_the_second_page(work: Any) -> Any:
        if next(pages) == 2:  # the first question is for the key
            raise DependencyUnavailable
        return await query(work)

    monkeypatch.setattr(ledger, "query", fail_at_the_second_page)

    with pytest.raises(httpx.RemoteProtocolError):
        await book.get("/usage", format="csv")


async def test_a_csv_of_a_dead_store_is_503_and_no_file(book: Book, monkeypatch: Any) -> None:
    async def fail(_: Any) -> Any:
        raise DependencyUnavailable

    await book.get("/usage")
    monkeypatch.setattr(book.product.nodes[0].ledger, "query", fail)

    answer = await book.get("/usage", format="csv")

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "dependency_unavailable"


async def test_no_cell_of_a_csv_is_run_as_a_formula(book: Book) -> None:
    for number, text in enumerate(("=1+1", "+x", "-2+3", "@SUM(A1)", '"a",\r\nb', "-5")):
        await transfers.deposit(
            book.database, transfer_id=f"txn_{number}", account_id=book.customer.id, amount=1, description=text
        )
    await book.run()

    exported = await book.get("/credits/transactions", format="csv")

    rows = list(csv.DictReader(io.StringIO(exported.text, newline="")))
    assert rows[0]["amount"] == "-0.000000040"
    assert [row["description"] for row in rows[1:7]] == ["-5", '"a",\r\nb', "'@SUM(A1)", "'-2+3", "'+x", "'=1+1"]


async def test_a_charge_can_be_recomputed_from_its_receipt(book: Book) -> None:
    row = await book.run(hold=1_000, prompt=30, cached=10, completion=7)

    receipt = (await book.get(f"/usage/{row.request_id}")).json()

    price = receipt["nanocredits_per_token"]
    cost = 20 * price["prompt"] + 10 * price["cached"] + 7 * price["completion"]
    per_million = receipt["prices_per_million_tokens"]
    again = (20 * Decimal(per_million["prompt"]) + 10 * Decimal(per_million["cached"])) / 10**6
    assert Decimal(receipt["cost"]) == Decimal(cost) / 10**9
    assert again + 7 * Decimal(per_million["completion"]) / 10**6 == Decimal(receipt["cost"])
    assert (receipt["charged"], receipt["hold"]) == (True, "0.000001000")
    (charge,) = (await book.get("/credits/transactions", request_id=row.request_id)).json()["data"]
    assert (receipt["transaction_id"], receipt["balance_after"]) == (charge["id"], charge["balance_after"])
    assert receipt["reserved_at"] <= receipt["created_at"]
    (usage,) = (await book.get("/usage")).json()["data"]
    assert {name: receipt[name] for name in usage if name != "object"} == {
        name: value for name, value in usage.items() if name != "object"
    }


async def test_the_receipt_of_a_free_failure_says_that_nothing_was_charged(book: Book) -> None:
    row = await book.run(status="failed", code="worker_lost")

    receipt = (await book.get(f"/usage/{row.request_id}")).json()

    assert (receipt["charged"], receipt["cost"]) == (False, "0.000000000")
    assert (receipt["transaction_id"], receipt["balance_after"]) == (None, None)


async def test_the_receipt_of_others_is_404_as_that_of_nobody(book: Book) -> None:
    row = await book.run()
    open_row = make_reserve(book.customer)
    await reserve_many(book.database, [open_row])
    _, others = await book.product.customer()

    answers = [
        await book.product.client.get(f"/usage/{request_id}", headers=others)
        for request_id in (row.request_id, ids.new_chat_id(), "x", "chatcmpl-%00")
    ]
    answers.append(await book.get(f"/usage/{open_row.request_id}"))

    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1


async def test_every_kind_of_request_can_be_a_cursor_and_has_a_receipt(book: Book) -> None:
    for make in (ids.new_chat_id, ids.new_completion_id, ids.new_embedding_id):
        row = await book.run(request_id=make())
        usage_id = (await book.get("/usage")).json()["first_id"]

        assert (await book.get(f"/usage/{row.request_id}")).status_code == 200
        assert (await book.get("/usage", after=usage_id)).status_code == 200


async def test_a_summary_sums_up_what_each_bucket_closed(book: Book) -> None:
    now = int(datetime.now(UTC).timestamp())
    hour = now // 3600 * 3600
    for hours in (2, 2, 1):
        await book.run(closed_ago=timedelta(seconds=now - hour + hours * 3600 - 600), prompt=3, cached=1, completion=2)
    await book.run(status="failed", closed_ago=timedelta(seconds=now - hour + 3000))

    page = (await book.get("/usage/summary", start_time=hour - 7200, end_time=hour, bucket_width="1h")).json()

    assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
    assert [(bucket["start_time"], bucket["end_time"]) for bucket in page["data"]] == [
        (hour - 7200, hour - 3600),
        (hour - 3600, hour),
    ]
    (first,), (second,) = [bucket["results"] for bucket in page["data"]]
    assert first == {
        "object": "usage.result",
        "model": None,
        "api_key_id": None,
        "requests": 2,
        "completed_requests": 2,
        "cancelled_requests": 0,
        "failed_requests": 0,
        "prompt_tokens": 6,
        "cached_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 10,
        "cost": "0.000000130",
    }
    assert (second["requests"], second["failed_requests"], second["completed_requests"]) == (2, 1, 1)


async def test_a_summary_is_grouped_and_filtered(book: Book) -> None:
    other = await make_key(book.database, book.customer)
    for model, key_id in (("org/a", other), ("org/a", book.customer.key_id), ("org/b", other), ("org/a", other)):
        await book.run(model=model, key_id=key_id)

    async def groups(**query: Any) -> list[tuple[str | None, str | None, int]]:
        page = await book.get("/usage/summary", start_time=NOW - 86400, **query)
        assert page.status_code == 200, page.text
        results = [result for bucket in page.json()["data"] for result in bucket["results"]]
        return sorted((r["model"], r["api_key_id"], r["requests"]) for r in results)

    assert await groups(group_by="model") == [("org/a", None, 3), ("org/b", None, 1)]
    assert len(await groups(group_by="model,api_key_id")) == 3
    assert await groups(group_by=["model", "api_key_id"]) == await groups(**{"group_by[]": ["api_key_id", "model"]})
    assert await groups(models="org/b") == [(None, None, 1)]
    assert await groups(models="org/a,org/b", api_key_ids=other) == [(None, None, 3)]
    assert await groups(models="org/none") == []


async def test_a_summary_by_keys_has_sessions_as_one_group_without_a_key(book: Book) -> None:
    for session_id in ("sess_a", "sess_b"):
        row = await book.run()
        await book.database.execute("ALTER TABLE usage DISABLE TRIGGER ALL")
        await book.database.execute("UPDATE usage SET key_id = $2 WHERE request_id = $1", row.request_id, session_id)
    await book.run()

    page = (await book.get("/usage/summary", start_time=NOW - 86400, group_by="api_key_id")).json()

    results = [result for bucket in page["data"] for result in bucket["results"]]
    assert {(result["api_key_id"], result["requests"]) for result in results} == {(book.customer.key_id, 1), (None, 2)}


async def test_a_summary_is_read_page_by_page(book: Book) -> None:
    await book.run()
    now = int(time.time())
    start = now // 60 * 60 - 290
    query = {"start_time": start, "end_time": now + 90, "bucket_width": "1m", "limit": 2}

    buckets = []
    page: dict[str, str] = {}
    while True:
        answer = (await book.get("/usage/summary", **query, **page)).json()
        buckets += answer["data"]
        assert len(answer["data"]) <= 2
        if not answer["has_more"]:
            break
        page = {"page": answer["next_page"]}

    assert buckets[0]["start_time"] == start
    assert buckets[-1]["end_time"] == now + 90
    assert all(one["end_time"] == two["start_time"] for one, two in itertools.pairwise(buckets))
    assert sum(result["requests"] for bucket in buckets for result in bucket["results"]) == 1


BAD_SUMMARIES = [
    ("", "start_time"),
    ("start_time=x", "start_time"),
    ("start_time=5&end_time=5", "end_time"),
    ("start_time=5&bucket_width=1w", "bucket_width"),
    ("start_time=5&group_by=user", "group_by"),
    ("start_time=5&limit=32", "limit"),
    ("start_time=5&bucket_width=1m&limit=1441", "limit"),
    ("start_time=5&page=abc", "page"),
    ("start_time=5&page=page_7", "page"),
    ("start_time=5&page=page_0", "page"),
    ("start_time=5&end_time=100000&page=page_172800", "page"),
    ("start_time=5&models=", "models"),
    ("start_time=5&models=" + ",".join(["m"] * 101), "models"),
    ("start_time=5&project_ids=x", "project_ids"),
]


async def test_a_bad_summary_is_400_and_named(book: Book) -> None:
    for query, param in BAD_SUMMARIES:
        answer = await book.product.client.get(f"/usage/summary?{query}", headers=book.headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), query


async def test_a_summary_that_takes_too_long_is_400_and_not_retried(book: Book, monkeypatch: Any) -> None:
    monkeypatch.setattr("shared.database.usage_summary.SECONDS_MOST", 0.02)
    await book.get("/usage")
    async with book.database.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE")

        answer = await book.get("/usage/summary", start_time=NOW - 86400)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
    assert (await book.get("/usage/summary", start_time=NOW - 86400)).status_code == 200


async def test_a_summary_holds_nothing_of_others(book: Book) -> None:
    await book.run()
    _, others = await book.product.customer()

    page = await book.product.client.get(f"/usage/summary?start_time={NOW - 86400}", headers=others)

    assert all(bucket["results"] == [] for bucket in page.json()["data"])


async def test_the_lifetime_of_an_account_is_what_came_in_and_what_was_charged(book: Book) -> None:
    for _ in range(3):
        await book.run()

    credits = (await book.get("/credits")).json()

    assert credits["lifetime"] == {"deposited": "1.000000000", "charged": "0.000000120"}
    assert credits["balance"] == "0.999999880"


def _as_text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
