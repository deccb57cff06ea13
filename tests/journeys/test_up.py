"""`inferbase up` and the other commands, as a person at a terminal uses them."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.local_product import LocalProduct, alive, run_cli

Start = Callable[..., LocalProduct]
GONE_SECONDS = 15.0
DEMO_MODEL = Path(__file__).parents[2] / "infra" / "demo_model" / "inferbase-demo.gguf"


@pytest.fixture
def start(store_folder: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    started: list[LocalProduct] = []

    def begin(*arguments: str, environment: dict[str, str] | None = None) -> LocalProduct:
        folder = store_folder / re.sub(r"\W", "_", request.node.name)[:80]
        folder.mkdir(mode=0o711, exist_ok=True)
        started.append(LocalProduct(folder, "--engine", "simulator", *arguments, environment=environment))
        return started[-1]

    yield begin
    for product in started:
        product.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def product(store_folder: Path) -> Iterator[LocalProduct]:
    """One `up` with two nodes and two workers, for all tests that only use it."""
    folder = store_folder / "up"
    folder.mkdir(mode=0o711)
    product = LocalProduct(folder, "--engine", "simulator", "--api-nodes", "2", "--workers", "2")
    try:
        yield product.wait()
    finally:
        product.stop()


def test_up_shows_a_completion_with_its_cost_and_how_to_send_the_next(product: LocalProduct) -> None:
    said = product.said()
    assert "Hello. Every token of this line came through the queue." in said
    for word in ("Usage", "Charge", "Balance", product.ready["base_url"], product.ready["api_key"], "curl -N"):
        assert word in said
    assert product.errors.read_text() == ""


def test_the_printed_charge_is_the_one_in_the_books(product: LocalProduct) -> None:
    charge, request_id = re.findall(r"Charge +(\S+) credits for (\S+)", product.said())[0]
    usage = re.findall(r"Usage +(\d+) prompt \+ (\d+) completion", product.said())[0]

    transactions = _get(product, "/credits/transactions?limit=100")["data"]
    used = next(row for row in _get(product, "/usage?limit=100")["data"] if row["request_id"] == request_id)

    assert [row["amount"] for row in transactions if row["request_id"] == request_id] == [f"-{charge}"]
    assert (used["cost"], used["status"], used["finish_reason"]) == (charge, "completed", "stop")
    assert (str(used["prompt_tokens"]), str(used["completion_tokens"])) == usage
    assert product.cli("audit") == {"clean": True, "violations": []}


def test_the_ready_file_names_every_process(product: LocalProduct) -> None:
    ready = product.ready
    roles = [(process["role"], process["index"], process["port"]) for process in ready["processes"]]
    ours = [one for one in roles if one[0] not in ("postgres", "valkey")]
    assert ours == [
        ("worker", 0, 0),
        ("worker", 1, 0),
        ("api", 0, product.port),
        ("api", 1, product.port + 1),
        ("settlement", 0, 0),
        ("janitor", 0, 0),
    ]
    metrics_ports = [one["metrics_port"] for one in ready["processes"] if one["role"] not in ("postgres", "valkey")]
    assert len(set(metrics_ports)) == len(ours)
    for port in metrics_ports:
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        assert "process_cpu_seconds_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert ready["base_urls"] == [
        f"http://127.0.0.1:{port}/api/v1/inference" for port in (product.port, product.port + 1)
    ]
    assert ready["base_url"] == ready["base_urls"][0]
    assert product.ready_file.stat().st_mode & 0o777 == 0o600
    assert all(alive(pid) for pid in product.pids())


def test_a_stop_is_clean_and_leaves_nothing_behind(start: Start) -> None:
    product = start("--no-self-check").wait(self_check=False)
    pids = product.pids()

    status = product.stop(signal.SIGINT)

    assert status == 0
    assert product.errors.read_text() == ""
    assert "killed" not in product.said()
    assert not any(alive(pid) for pid in pids)
    assert not product.ready_file.exists()


def test_a_second_ctrl_c_ends_everything_at_once_and_says_so(start: Start) -> None:
    product = start("--no-self-check").wait(self_check=False)
    product.cli("model", "add", "sim/slow", "--engine", "simulator", "--option", "step_ms=1000")
    pids = product.pids()
    with _slow_stream(product):
        product.process.send_signal(signal.SIGINT)
        _until(lambda: "Stopping" in product.said())

        status = product.stop(signal.SIGINT)

    assert status == 130
    assert product.said().endswith(
        "\nEnding at once: running streams are cut. The books are safe: the next start closes what is open.\n"
    )
    assert product.errors.read_text() == ""
    assert not product.ready_file.exists()
    _until(lambda: not any(alive(pid) for pid in pids))


def test_killing_up_itself_leaves_no_orphan(start: Start) -> None:
    product = start("--no-self-check").wait(self_check=False)
    pids = product.pids()

    product.process.kill()
    product.process.wait()

    _until(lambda: not any(alive(pid) for pid in pids))


def test_a_second_run_finds_its_key_and_its_books(start: Start) -> None:
    first = start().wait()
    first.stop()

    second = start().wait()

    assert second.ready["api_key"] == first.ready["api_key"]
    account = second.cli("account", "list")["data"][0]["id"]
    charged = second.cli("credits", "show", account)["lifetime"]["charged"]
    once = next(line for line in second.said().splitlines() if "Charge" in line).split()[1]
    assert float(charged) == pytest.approx(2 * float(once))


def test_a_dead_process_is_replaced_and_the_ready_file_follows(product: LocalProduct) -> None:
    before = {process["role"]: process["pid"] for process in product.ready["processes"]}

    os.kill(before["settlement"], signal.SIGKILL)

    give_up = time.monotonic() + GONE_SECONDS
    while (now := _pids_by_role(product))["settlement"] == before["settlement"]:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert alive(now["settlement"])
    assert {role: pid for role, pid in now.items() if role != "settlement"} == {
        role: pid for role, pid in before.items() if role != "settlement"
    }


def test_a_taken_port_is_one_line_and_a_failure(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        product = start("--port", str(taken.getsockname()[1]))

        status = product.process.wait(20)

    assert status == 1
    assert product.errors.read_text().count("\n") == 1
    assert "is taken" in product.errors.read_text()


def test_a_folder_that_cannot_be_written_is_one_line_and_a_failure(start: Start) -> None:
    product = start("--data-dir", "/proc/inferbase")

    status = product.process.wait(20)

    assert status == 1
    assert product.errors.read_text().count("\n") == 1
    assert "/proc/inferbase cannot be written" in product.errors.read_text()


def test_a_model_that_does_not_exist_is_one_line_and_a_failure(start: Start) -> None:
    product = start("--engine", "llamacpp", "--model", "missing.gguf")

    status = product.process.wait(20)

    assert status == 1
    assert product.errors.read_text() == (
        "inferbase: the model file missing.gguf cannot be read: No such file or directory\n"
    )


def test_a_ready_file_that_cannot_be_written_is_refused_before_anything_starts(start: Start) -> None:
    product = start("--ready-file", "/proc/missing/ready.json")

    status = product.process.wait(20)

    assert status == 1
    assert product.errors.read_text() == (
        "inferbase: the ready-file /proc/missing/ready.json cannot be written: choose another with --ready-file\n"
    )


def test_given_stores_are_used_instead_of_embedded_ones(start: Start, database_url: str, redis_url: str) -> None:
    given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}

    product = start(environment=given).wait()

    assert product.ready["database_url"] == database_url
    assert product.ready["redis_url"] == redis_url
    assert not {"postgres", "valkey"} & {process["role"] for process in product.ready["processes"]}


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/none"}, "The database is unavailable: retry shortly."),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "The queue is unavailable: retry shortly."),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL must start with postgresql://"),
        ({"REDIS_URL": "nonsense"}, "REDIS_URL must start with redis://"),
        ({"INFERBASE_LEASE_SECONDS": "soon"}, "INFERBASE_LEASE_SECONDS: "),
    ],
)
def test_settings_that_cannot_work_are_one_line_and_a_failure(
    start: Start, environment: dict[str, str], line: str
) -> None:
    product = start(environment=environment)

    status = product.process.wait(30)

    assert status == 1
    assert product.errors.read_text().startswith(f"inferbase: {line}")
    assert product.errors.read_text().count("\n") == 1


def test_accounts_keys_and_models_made_by_commands_work_at_once(product: LocalProduct) -> None:
    account = product.cli("account", "create", "--email", "ada@example.com")["id"]
    product.cli("credits", "grant", account, "1.5")
    key = product.cli("key", "create", account, "--name", "laptop")
    product.cli("model", "add", "my/model", "--engine", "simulator", "--option", "tokens=3")

    answer = _complete(product, key["key"], "my/model")

    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert product.cli("key", "list", account)["data"][0]["id"] == key["id"]


@pytest.mark.parametrize(("engine", "warned"), [("simulator", False), ("llamacpp", True)])
def test_adding_a_model_that_no_live_worker_lists_says_so(product: LocalProduct, engine: str, warned: bool) -> None:
    options = ["--option", f"path={DEMO_MODEL}"] if engine == "llamacpp" else []
    done = run_cli(product.data, "model", "add", f"lonely/{engine}", "--engine", engine, *options)

    assert done.returncode == 0, done.stderr
    assert (f"warning: no live worker lists lonely/{engine}" in done.stderr) is warned


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--engine", "nope"], "there is no engine 'nope': choose llamacpp, simulator or tensorrt"),
        (["--engine", "simulator", "--option", "wat=1"], "engine simulator has no option 'wat'; it has: load_seconds,"),
        (["--engine", "simulator", "--option", "tokens=abc"], "option of engine simulator: Expected `int`"),
        (["--engine", "llamacpp", "--option", "tokens=3"], "engine llamacpp has no option 'tokens'; it has: "),
        (["--engine", "llamacpp"], "a llamacpp model needs --option path=FILE, its GGUF file"),
        (["--engine", "llamacpp", "--option", "path="], "a llamacpp model needs --option path=FILE, its GGUF file"),
        (["--engine", "tensorrt"], "a tensorrt model needs --option path=FOLDER, its checkpoint"),
        (["--engine", "tensorrt", "--option", "kv_cache_fraction=2"], "option of engine tensorrt: Expected `float`"),
        (["--engine", "llamacpp", "--option", "path=no.gguf"], "the model file no.gguf cannot be read: No such file"),
        (["--engine", "llamacpp", "--option", f"path={__file__}"], f"the model file {__file__} is not a GGUF file"),
    ],
)
def test_a_model_that_no_worker_could_load_is_not_added(product: LocalProduct, options: list[str], line: str) -> None:
    done = run_cli(product.data, "model", "add", "no/good", *options)

    assert done.returncode == 1
    assert done.stderr.startswith(f"inferbase: {line}")
    assert done.stderr.count("\n") == 1
    assert "no/good" not in [model["id"] for model in product.cli("model", "list")["data"]]


@pytest.mark.parametrize(
    "command", [("key", "list"), ("key", "create"), ("credits", "show"), ("credits", "grant", "5")], ids=" ".join
)
def test_an_unknown_account_is_the_same_line_in_every_command(product: LocalProduct, command: tuple[str, ...]) -> None:
    noun, verb, *rest = command

    done = run_cli(product.data, noun, verb, "acct_nope", *rest)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "inferbase: there is no account acct_nope: `inferbase account list` shows the ids\n"


@pytest.mark.parametrize("amount", ["-5", "-0.5", "0"])
def test_only_a_positive_amount_can_be_granted(product: LocalProduct, amount: str) -> None:
    done = run_cli(product.data, "credits", "grant", "acct_any", amount)

    assert done.returncode == 1
    assert done.stderr == f"inferbase: the amount must be positive, such as 25 or 0.5, and not {amount}\n"


def test_a_worker_of_an_unknown_engine_says_so_and_ends(product: LocalProduct) -> None:
    done = run_cli(product.data, "worker", "--engine", "nope")

    assert done.returncode == 1
    assert done.stderr == "inferbase: there is no engine 'nope': choose llamacpp, simulator or tensorrt\n"


def test_a_key_revoked_by_command_is_refused_within_five_seconds(product: LocalProduct) -> None:
    account = product.cli("account", "list")["data"][0]["id"]
    key = product.cli("key", "create", account)
    assert _complete(product, key["key"], product.ready["model"]).status_code == 200

    product.cli("key", "revoke", key["id"])

    give_up = time.monotonic() + 5
    while (status := _complete(product, key["key"], product.ready["model"]).status_code) == 200:
        assert time.monotonic() < give_up
    assert status == 403


def test_commands_find_the_books_of_a_stopped_product(start: Start) -> None:
    product = start("--no-self-check").wait(self_check=False)
    assert product.stop(signal.SIGTERM) == 0

    account = product.cli("account", "list")["data"][0]

    assert product.cli("credits", "show", account["id"])["object"] == "credit_balance"
    assert product.cli("audit", "--json") == {"clean": True, "violations": []}


def test_commands_without_any_product_say_what_to_do(store_folder: Path) -> None:
    nothing = store_folder / "nothing"

    accounts, audit = run_cli(nothing, "account", "list"), run_cli(nothing, "audit")

    assert (accounts.returncode, audit.returncode) == (1, 2)
    assert "run `inferbase up`" in accounts.stderr
    assert accounts.stderr.count("\n") == audit.stderr.count("\n") == 1


def _until(claim: Callable[[], bool]) -> None:
    give_up = time.monotonic() + GONE_SECONDS
    while not claim():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@contextmanager
def _slow_stream(product: LocalProduct) -> Iterator[None]:
    """Keep a stream open that has had its first chunk and takes much longer than a test."""
    health = f"{product.ready['base_url']}/models/sim/slow/health"
    _until(lambda: httpx.get(health, timeout=10).json().get("status") == "ready")
    with httpx.stream(
        "POST",
        f"{product.ready['base_url']}/chat/completions",
        headers={"Authorization": f"Bearer {product.ready['api_key']}"},
        json={"model": "sim/slow", "messages": [{"role": "user", "content": "Hello!"}], "stream": True},
        timeout=30,
    ) as answer:
        assert answer.status_code == 200
        next(answer.iter_bytes())
        yield


def _pids_by_role(product: LocalProduct) -> dict[str, int]:
    return {process["role"]: process["pid"] for process in json.loads(product.ready_file.read_bytes())["processes"]}


def _get(product: LocalProduct, path: str) -> Any:
    headers = {"Authorization": f"Bearer {product.ready['api_key']}"}
    return httpx.get(product.ready["base_url"] + path, headers=headers, timeout=10).raise_for_status().json()


def _complete(product: LocalProduct, key: str, model: str) -> httpx.Response:
    """Send one request; the answer may wait until a worker has taken up the model."""
    return httpx.post(
        f"{product.ready['base_url']}/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": model, "messages": [{"role": "user", "content": "Hello!"}]},
        timeout=30,
    )
