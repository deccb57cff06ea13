"""llama.cpp's own traps, each with the test that would notice its return."""

import asyncio
import contextlib
import itertools
import json
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import EngineFailed, SettingsInvalid
from tests.contract.engines import collect, ids, prompt, sampling
from workers.engines import open_engine
from workers.engines.base import Delta, EngineGuide, EngineOptions, GuideForm
from workers.engines.delta_queue import DeltaQueue
from workers.engines.gguf import CONTROL, read_head
from workers.engines.llamacpp import DEMO_MODEL, LlamaCpp, open_llamacpp
from workers.engines.llamacpp_stream import CompletionStream, GuideFollower
from workers.engines.llamacpp_tokenizer import vocabulary_bytes

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def engine() -> AsyncIterator[LlamaCpp]:
    async with open_llamacpp(EngineOptions(model="m", context=512)) as llamacpp:
        yield llamacpp


async def replayed(engine: LlamaCpp, answer: bytes, cuts: list[int]) -> list[Delta]:
    """The deltas that a stream makes of an HTTP answer which arrives in pieces."""
    queue = DeltaQueue(asyncio.get_running_loop(), lambda: None)
    stream = CompletionStream(b"", queue, engine.tokenizer, lambda: None)
    edges = [0, *sorted(cut % len(answer) for cut in cuts), len(answer)]
    for begin, end in itertools.pairwise(edges):
        stream.data_received(answer[begin:end])
    stream.connection_lost(None)
    return await collect(queue)


def http(*events: dict[str, object], status: int = 200) -> bytes:
    """An answer of the engine, one chunk per event, with a ping between them."""
    chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    chunks[1:1] = [b":\n\n"]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 %d Any\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (status, body)


def event(token_id: int, content: str, predicted: int) -> dict[str, object]:
    """One token as the engine tells it."""
    return {"content": content, "tokens": [token_id], "tokens_predicted": predicted, "stop": False}


@pytest.mark.parametrize(
    "said", ["\U0001f600a\U0001f600", "\u4f60\u597d, \u4e16\u754c", "e\u0301\U0001f468\u200d\U0001f469"]
)
async def test_ids_inside_a_character_are_found_again(engine: LlamaCpp, said: str) -> None:
    request = engine._request(prompt(engine), sampling(200))
    head, body = request.split(b"\r\n\r\n", 1)
    forced = json.loads(body) | {"grammar": f'root ::= "{said}"', "temperature": 1.0}
    data = json.dumps(forced).encode()
    head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(data))
    queue = DeltaQueue(asyncio.get_running_loop(), lambda: None)
    stream = CompletionStream(head + b"\r\n\r\n" + data, queue, engine.tokenizer, lambda: None)
    transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: stream, engine._socket_path)

    made = ids(await collect(queue))
    transport.abort()

    assert b"".join(map(engine.tokenizer.token_bytes, made)) == said.encode()
    assert made[-1] in engine.end_token_ids
    assert len(made) > len(said) + 1


async def test_bytes_that_are_no_utf8_keep_their_number(engine: LlamaCpp) -> None:
    (word,) = engine.tokenizer.encode(" the", special=False)
    answer = http(event(word, " the", 1), event(word, "\ufffd the", 4), {"stop_type": "limit", "tokens_predicted": 6})

    deltas = await replayed(engine, answer, [])

    assert len(ids(deltas)) == 6
    assert ids(deltas)[3] == word
    assert deltas[-1].finish_reason == "length"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_where_the_answers_bytes_are_cut_never_matters(cuts: list[int]) -> None:
    class NoTokenizer:
        pass

    events = [event(at, "x", at) for at in range(1, 6)]
    answer = http(*events, {"stop_type": "eos", "tokens_predicted": 5})

    async def check() -> None:
        queue = DeltaQueue(asyncio.get_running_loop(), lambda: None)
        stream = CompletionStream(b"", queue, NoTokenizer(), lambda: None)  # type: ignore[arg-type]
        edges = [0, *sorted(cut % len(answer) for cut in cuts), len(answer)]
        for begin, end in itertools.pairwise(edges):
            stream.data_received(answer[begin:end])
        deltas = await collect(queue)
        assert ids(deltas) == [1, 2, 3, 4, 5]
        assert deltas[-1].finish_reason == "stop"

    asyncio.run(check())


@pytest.mark.parametrize(
    "answer",
    [
        http({"error": {"message": "out of slots", "code": 500}}),
        http(event(5, "x", 1)),
        http({"error": {}}, status=400),
        b"HTTP/1.1 200 OK\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n9\r\ndata: {[}\r\n",
        b"x" * 20_000,
        b"",
    ],
    ids=["an error event", "broken off", "refused", "no chunk", "no JSON", "no head", "nothing"],
)
async def test_an_answer_that_is_none_fails_the_request(engine: LlamaCpp, answer: bytes) -> None:
    with pytest.raises(EngineFailed):
        await replayed(engine, answer, [])


async def test_the_engine_opens_no_port_and_hides_its_socket() -> None:
    before = _listening_ports()

    async with open_llamacpp(EngineOptions(model="m", context=128)) as engine:
        after = _listening_ports()
        mode = stat.S_IMODE(Path(engine._socket_path).parent.stat().st_mode)
        await engine.warm_up()

    assert after == before
    assert mode == 0o700


def _listening_ports() -> set[int]:
    connections = psutil.Process().net_connections("inet")
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}


async def test_closing_removes_the_socket_and_frees_the_model() -> None:
    async with open_llamacpp(EngineOptions(model="m", context=128)) as engine:
        folder = Path(engine._socket_path).parent
        await engine.warm_up()
    assert not folder.exists()


def test_a_sigterm_after_loading_reaches_our_own_handler() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from workers.engines import open_engine\n"
        "from workers.engines.base import EngineOptions\n"
        "async def main():\n"
        "    stopping = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)\n"
        "    async with open_engine('llamacpp', EngineOptions(model='m', context=128)) as engine:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        await asyncio.wait_for(stopping.wait(), 5)\n"
        "        await engine.warm_up()\n"
        "        print('ours', flush=True)\n"
        "asyncio.run(main())\n"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)

    assert (ended.stdout, ended.returncode) == (b"ours\n", 0), ended.stderr.decode()


def test_loading_leaves_the_signal_mask_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    async def main() -> None:
        async with open_llamacpp(EngineOptions(model="m", context=128)):
            pass

    asyncio.run(main())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


async def test_closing_does_not_wait_for_the_engines_own_streams() -> None:
    async with open_llamacpp(EngineOptions(model="m", context=1024, slots=2)) as engine:
        answers = [engine.generate(key, prompt(engine), sampling(900, temperature=2.0)) for key in "ab"]
        for answer in answers:
            await anext(answer)
        started = time.monotonic()
    assert time.monotonic() - started < 2


async def test_the_context_is_never_more_than_the_model_was_trained_for() -> None:
    async with open_llamacpp(EngineOptions(model="m", context=10_000_000, slots=1)) as engine:
        assert engine.context == read_head(DEMO_MODEL).context


async def test_a_missing_or_damaged_file_is_refused_by_its_path(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(DEMO_MODEL.read_bytes()[:5000])
    for path in (tmp_path / "none.gguf", cut, tmp_path):
        with pytest.raises(SettingsInvalid, match=path.name):
            async with open_engine("llamacpp", EngineOptions(model="m", context=64, path=str(path))):
                pass


@settings(max_examples=80, deadline=None)
@given(length=st.integers(0, 60_000), at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_any_damage_to_a_head_is_refused_or_harmless(length: int, at: int, byte: int) -> None:
    data = bytearray(DEMO_MODEL.read_bytes()[:length])
    if at < len(data):
        data[at] = byte
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(SettingsInvalid):
            read_head(Path(file.name))


def test_the_demo_vocabulary_holds_every_byte_and_three_special_tokens() -> None:
    head = read_head(DEMO_MODEL)
    texts = vocabulary_bytes(head)

    assert {bytes((value,)) for value in range(256)} <= set(texts)
    assert [head.tokens[at] for at, kind in enumerate(head.token_types) if kind == CONTROL] == [
        text for at, text in enumerate(head.tokens) if not texts[at]
    ]


async def test_a_grammar_that_the_engine_cannot_read_leaves_it_unguided_and_is_caught(engine: LlamaCpp) -> None:
    unread = engine._request(prompt(engine), sampling(20), grammar="%llguidance {}\nstart: nowhere")
    guide = EngineGuide(forms=(GuideForm("", '{"type": "object"}', ""),), param="response_format")

    async def answer(follower: GuideFollower | None) -> list[Delta]:
        queue = DeltaQueue(asyncio.get_running_loop(), lambda: None)
        await engine._serve(queue, unread, None, follower)
        return await collect(queue)

    assert ids(await answer(None))
    with pytest.raises(EngineFailed, match="left the guide"):
        await answer(GuideFollower(await engine._grammars.open(guide), (), engine.end_token_ids))


async def test_plain_sampling_is_asked_for_without_the_engines_defaults(engine: LlamaCpp) -> None:
    body = json.loads(
        engine._request([1, 2], sampling(3, temperature=0.7, top_p=0.9, seed=2**40)).split(b"\r\n\r\n")[1]
    )

    assert body["samplers"] == ["temperature", "top_p"]
    assert (body["temperature"], body["top_p"], body["n_predict"]) == (0.7, 0.9, 3)
    assert 0 <= body["seed"] < 2**32 - 1
    assert body["cache_prompt"] is False
