"""What LeasedWorker overrides and calls of arq is what arq 0.28.0 has: an upgrade must be read before it is taken."""

import inspect
from importlib.metadata import version

import arq.jobs
import pytest
from arq.worker import Function, Worker

from shared.queue.worker import LeasedWorker

OVERRIDDEN = {
    "main": "(self) -> None",
    "run_job": "(self, job_id: str, score: int) -> None",
    "finish_job": (
        "(self, job_id: str, finish: bool, result_data: Optional[bytes], result_timeout_s: Optional[float], "
        "keep_result_forever: bool, incr_score: Optional[int], keep_in_progress: Optional[float]) -> None"
    ),
    "handle_sig": "(self, signum: signal.Signals) -> None",
    "handle_sig_wait_for_completion": "(self, signum: signal.Signals) -> None",
    "close": "(self) -> None",
}
USED_ARGUMENTS = {
    "functions",
    "redis_pool",
    "handle_signals",
    "keep_result",
    "job_serializer",
    "job_deserializer",
    "log_results",
}


def test_arq_is_the_version_that_was_read() -> None:
    assert version("arq") == "0.28.0"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_name_has_the_signature_that_was_read(name: str) -> None:
    assert str(inspect.signature(getattr(Worker, name))) == OVERRIDDEN[name]


def test_nothing_else_of_arq_is_overridden() -> None:
    ours = {name for name in vars(LeasedWorker) if not name.startswith("__") and hasattr(Worker, name)}

    assert ours == set(OVERRIDDEN)


@pytest.mark.parametrize("name", sorted(set(OVERRIDDEN) - {"handle_sig", "handle_sig_wait_for_completion"}))
def test_an_overridden_coroutine_is_one_here_too(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(Worker, name))
    assert inspect.iscoroutinefunction(getattr(LeasedWorker, name))


def test_the_arguments_that_we_give_exist() -> None:
    assert set(inspect.signature(Worker.__init__).parameters) >= USED_ARGUMENTS


def test_our_private_names_hide_none_of_arq() -> None:
    attributes = {name for name in vars(Worker) if name.startswith("_") and not name.startswith("__")}

    assert not attributes & set(vars(LeasedWorker))


def test_the_job_format_has_the_five_fields_that_we_seal() -> None:
    data = {}
    arq.jobs.serialize_job("complete", (b"payload",), {}, None, 7, serializer=lambda job: data.update(job) or b"")

    assert data == {"t": None, "f": "complete", "a": (b"payload",), "k": {}, "et": 7}


def test_a_function_still_wants_a_coroutine() -> None:
    assert list(Function.__dataclass_fields__) == [
        "name",
        "coroutine",
        "timeout_s",
        "keep_result_s",
        "keep_result_forever",
        "max_tries",
    ]
