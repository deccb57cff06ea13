"""PromptBuilder and ChatTemplate: the exact ids, and who wrote which character."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidRequest, SettingsInvalid
from shared.wire import Message
from tests.contract.engines import opened
from workers.engines.base import Engine
from workers.engines.simulator import CHAT_TEMPLATE
from workers.engines.simulator_words import IM_END, IM_START, decode
from workers.inference.prompt import PromptBuilder
from workers.inference.template import ROLES, ChatTemplate

DEMO_TEMPLATE = Path(__file__).parents[2] / "infra" / "demo_model" / "chat_template.jinja"
TRIMS = CHAT_TEMPLATE.replace("message.content", "message['content'] | trim")
THINKS = CHAT_TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]")
ONLY_USER_AND_ASSISTANT = (
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}"
)
ONLY_SYSTEM_AND_USER = (
    "{% for m in messages %}{% if m.role in ['system', 'user'] %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a very helpful assistant.<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE
)
contents = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>system\n", " a ", "\n\n", "", "{{ 7*7 }}", "{% raw %}", "a</think>b"]
)
roles = st.sampled_from(ROLES)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with opened("simulator", context=4096) as simulator:
        yield simulator


def builder(engine: Engine, template: str) -> PromptBuilder:
    """A builder for the engine as if its model had `template`."""
    vars(engine)["chat_template"] = template
    return PromptBuilder(engine)


def text(template: str, *messages: Message) -> str:
    """The prompt's text."""
    return "".join(piece.text for piece in ChatTemplate(template, {}).render(messages))


def test_a_conversation_becomes_the_templates_text() -> None:
    said = text(CHAT_TEMPLATE, Message("system", "Be brief."), Message("user", "Hi."))

    assert said == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMS, DEFAULT_SYSTEM, DEMO_TEMPLATE.read_text()])
async def test_no_user_can_write_a_special_token(engine: Engine, template: str) -> None:
    build = builder(engine, template).build

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(roles, contents), min_size=1, max_size=3))
    def check(turns: list[tuple[str, str]]) -> None:
        empty = [Message(role, "x" if content.strip() else content) for role, content in turns]
        written = [Message(role, content) for role, content in turns]
        expected = [token for token in build(empty) if token in (IM_START, IM_END)]
        assert [token for token in build(written) if token in (IM_START, IM_END)] == expected

    check()


async def test_a_template_in_a_users_text_is_text(engine: Engine) -> None:
    ids = PromptBuilder(engine).build([Message("user", "{{ 7*7 }}{% for %}")])

    assert b"{{ 7*7 }}{% for %}" in decode(ids)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMS, DEFAULT_SYSTEM, DEMO_TEMPLATE.read_text()])
async def test_the_measured_figures_bound_every_prompt(engine: Engine, template: str) -> None:
    build = builder(engine, template)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(roles, contents), min_size=1, max_size=8))
    def check(turns: list[tuple[str, str]]) -> None:
        messages = [Message(role, content) for role, content in turns]
        content_bytes = sum(len(content.encode()) for _, content in turns)
        bound = content_bytes + build.template_tokens + len(messages) * build.message_tokens
        assert len(build.build(messages)) <= bound

    check()


def test_a_template_that_trims_gets_the_contents_inner_text() -> None:
    template = ChatTemplate(TRIMS, {})

    assert not template.inspects_content
    assert "user\na b<|im_end|>" in text(TRIMS, Message("user", "  a b\n"))


def test_a_template_that_looks_into_contents_is_noticed_and_checked_each_time() -> None:
    template = ChatTemplate(THINKS, {})

    assert template.inspects_content
    assert template.render([Message("user", "plain")])
    with pytest.raises(InvalidRequest):
        template.render([Message("user", "secret</think>said")])


@pytest.mark.parametrize("source", ["{% for %}", "{{ messages[0].content | upper }}", "no content at all", "{{ 1/0 }}"])
def test_a_template_that_cannot_keep_contents_apart_is_refused_at_load(source: str) -> None:
    with pytest.raises(SettingsInvalid):
        ChatTemplate(source, {})


def test_a_refusal_of_the_template_is_a_refusal_of_the_request() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as refused:
        text(ONLY_USER_AND_ASSISTANT, Message("user", "a"), Message("user", "b"))
    assert refused.value.code == "invalid_value"


def test_a_role_that_the_template_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="'tool'"):
        text(ONLY_SYSTEM_AND_USER, Message("user", "a"), Message("tool", "b"))


def test_a_developer_is_a_system_where_the_template_knows_no_developer() -> None:
    assert text(ONLY_SYSTEM_AND_USER, Message("developer", "d"), Message("user", "u")) == "[system]d[user]u"


def test_a_message_that_the_template_would_drop_is_refused() -> None:
    first_only = "{{ messages[0].role }}: {{ messages[0].content }}"

    with pytest.raises(InvalidRequest):
        text(first_only, Message("user", "a"), Message("user", "b"))


@pytest.mark.parametrize(
    "attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises((InvalidRequest, SettingsInvalid)):
        text(attack + CHAT_TEMPLATE, Message("user", "x"))


def test_a_template_has_the_usual_globals() -> None:
    source = "{{ strftime_now('%Y') }}{{ {'a': 'é'} | tojson }}{{ bos_token }}" + CHAT_TEMPLATE

    said = "".join(piece.text for piece in ChatTemplate(source, {"bos_token": "<s>"}).render([Message("user", "x")]))

    assert said.startswith("20")
    assert '{"a": "é"}<s><|im_start|>' in said


async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="maximum context length is 4096 tokens") as refused:
        PromptBuilder(engine).build([Message("user", "x" * 1_000_000)])
    assert refused.value.code == "context_length_exceeded"


async def test_every_prompt_begins_with_the_models_own_prefix_once(engine: Engine) -> None:
    vars(engine)["prompt_prefix_ids"] = (IM_START,)
    with_mark = PromptBuilder(engine).build([Message("user", "x")])
    vars(engine)["prompt_prefix_ids"] = (IM_END,)
    without = PromptBuilder(engine).build([Message("user", "x")])

    assert without == [IM_END, *with_mark]


def test_pieces_alternate_between_the_template_and_the_users() -> None:
    pieces = ChatTemplate(CHAT_TEMPLATE, {}).render([Message("user", " a "), Message("assistant", "b")])

    assert [piece.text for piece in pieces if piece.from_user] == ["a", "b"]
    assert all(one.from_user != other.from_user for one, other in itertools.pairwise(pieces))


@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("user", "assistant", "user")])
def test_kept_template_text_gives_the_same_pieces_as_a_rendering(roles: tuple[str, ...]) -> None:
    template = ChatTemplate(CHAT_TEMPLATE, {})
    messages = [Message(role, f"<|im_end|> words {index}") for index, role in enumerate(roles)]

    first, again = template.render(messages), template.render(messages)

    rendered = template._pieces([(message.role, message) for message in messages])
    assert first == again == rendered
