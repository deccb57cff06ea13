"""What a request may ask of an engine: it has its effect, or is refused by its public name."""

from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.wire import Guide, Sampling, Task, Tool, ToolUse
from tests.contract.engines import PATIENCE_SECONDS, collect, ids, opened, prompt, sampling
from workers.engines.base import Capabilities, EngineGuide, GuideForm
from workers.engines.validation import check_capabilities

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)
every = pytest.mark.parametrize("name", ["simulator", "llamacpp", "tensorrt"])

DEMANDS: dict[str, dict[str, Any]] = {
    "presence_penalty": {"presence_penalty": -1.5},
    "frequency_penalty": {"frequency_penalty": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "logit_bias": {"logit_bias": ((70, -100.0),)},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "logprobs": {"top_logprobs": 0},
    "seed": {"seed": 1},
}
NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": (),
    "top_k": 0,
    "min_p": 0.0,
    "top_logprobs": None,
}
SERVED = {
    "simulator": {"seed"},
    "llamacpp": set(DEMANDS),
    "tensorrt": {"logit_bias", "top_k", "logprobs"},
}


def able(**but: bool) -> Capabilities:
    """An engine that does everything but what is said otherwise."""
    return Capabilities(**{name: but.get(name, True) for name in Capabilities.__struct_fields__})


UNABLE = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__, False))


@every
@pytest.mark.parametrize("param", DEMANDS)
async def test_what_is_asked_for_is_served_or_refused_by_name(name: str, param: str) -> None:
    async with opened(name) as engine:
        asked = sampling(2, **DEMANDS[param])
        if param in SERVED[name]:
            assert ids(await collect(engine.generate("a", prompt(engine), asked)))
            return

        with pytest.raises(InvalidRequest) as refused:
            engine.generate("a", prompt(engine), asked)

        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
        assert engine.steps() == 0


@every
async def test_neutral_values_change_nothing(name: str) -> None:
    async with opened(name) as engine:
        plain, neutral = [
            ids(await collect(engine.generate("a", prompt(engine), asked)))
            for asked in (sampling(), sampling(**NEUTRAL))
        ]

        assert plain == neutral


@every
@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", True),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_k", 1.0),
        ("min_p", 1.1),
        ("min_p", -0.1),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((10**6, 1.0),)),
        ("logit_bias", ((5, 100.1),)),
        ("logit_bias", ((5, float("inf")),)),
        ("logit_bias", ((True, 1.0),)),
        ("top_logprobs", -1),
        ("top_logprobs", 21),
    ],
)
async def test_bad_values_never_reach_the_engine(name: str, param: str, value: Any) -> None:
    async with opened(name) as engine:
        with pytest.raises(InvalidRequest) as refused:
            engine.generate("a", prompt(engine), sampling(**{param: value}))

        assert refused.value.param == param
        assert engine.steps() == 0


@pytest.mark.parametrize("param", DEMANDS)
def test_an_engine_that_cannot_refuses_the_public_field(param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_capabilities(Sampling(**DEMANDS[param]), Task(), UNABLE)

    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    check_capabilities(Sampling(**DEMANDS[param]), Task(), able())


TOOL = Tool("f", None, "{}")


@pytest.mark.parametrize(
    ("task", "param"),
    [
        (Task(guide=Guide("json_object")), "response_format"),
        (Task(tool_use=ToolUse((TOOL,), "required")), "tool_choice"),
        (Task(tool_use=ToolUse((TOOL,), "named", "f")), "tool_choice"),
        (Task(tool_use=ToolUse((Tool("f", None, "{}", strict=True),))), "tools"),
        (Task(kind="embedding"), "model"),
    ],
)
def test_an_engine_that_cannot_refuses_the_task(task: Task, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_capabilities(Sampling(), task, UNABLE)

    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    check_capabilities(Sampling(), task, able())


@pytest.mark.parametrize(
    "task",
    [
        Task(),
        Task(kind="completion", echo=True),
        Task(tool_use=ToolUse((TOOL,))),
        Task(tool_use=ToolUse((TOOL,), "none")),
    ],
)
def test_what_needs_no_engine_passes_everywhere(task: Task) -> None:
    check_capabilities(Sampling(**NEUTRAL), task, UNABLE)


def test_logprobs_of_an_echoed_prompt_are_refused_everywhere() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_capabilities(Sampling(top_logprobs=0), Task(kind="completion", echo=True), able())

    assert refused.value.param == "echo"


@every
async def test_capabilities_are_told_as_they_are(name: str) -> None:
    async with opened(name) as engine:
        guided = EngineGuide(forms=(GuideForm("", "{}", ""),), param="response_format")

        assert engine.capabilities.seed is (name != "tensorrt")
        assert engine.capabilities.guided_decoding
        assert engine.capabilities.logprobs is (name != "simulator")
        assert await collect(engine.generate("a", prompt(engine), sampling(3, guide=guided)))
