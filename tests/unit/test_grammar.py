"""Guides as grammars: what is written, what is refused, how an answer is followed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import EngineFailed, InvalidRequest
from workers.engines.base import EngineGuide, GuideForm
from workers.engines.grammar import FORMS_MOST, GUIDE_CHARACTERS_MOST, Grammars, GuideMatcher, write_grammar
from workers.engines.llamacpp_stream import GuideFollower
from workers.engines.simulator_guided import guided_ids
from workers.engines.simulator_words import IM_END, VOCABULARY_SIZE, SimulatorTokenizer, decode

TOKENIZER = SimulatorTokenizer()
PAIR = '{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}'


def guide(*forms: GuideForm, **more: Any) -> EngineGuide:
    """A guide of forms, by default two booleans."""
    return EngineGuide(forms=forms or (GuideForm("", PAIR, ""),), param="tools", **more)


def grammars() -> Grammars:
    return Grammars(TOKENIZER, vocabulary=VOCABULARY_SIZE, end_token_ids={IM_END})


async def opened(of: EngineGuide | None = None) -> GuideMatcher:
    return await grammars().open(of or guide())


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, special=False)


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("[true, false]", True),
        ("[true,false]", False),
        ("[true, false] ", False),
        (" [true, false]", False),
        ("[true, false, true]", False),
        ("[true", True),
    ],
)
async def test_an_answer_is_followed_to_the_letter(text: str, follows: bool) -> None:
    matcher = await opened()

    assert matcher.take(encoded(text)) is follows
    assert matcher.accepting is (text == "[true, false]")


async def test_what_is_allowed_is_what_can_be_taken() -> None:
    matcher = await opened()
    assert matcher.take(encoded("["))

    assert [token for token in range(VOCABULARY_SIZE) if matcher.allowed() >> token & 1] == sorted(map(ord, "tf"))


async def test_matchers_of_one_guide_are_independent() -> None:
    own = grammars()
    first, second = await own.open(guide()), await own.open(guide())
    assert first.take(encoded("[true"))

    assert second.take(encoded("[false"))
    assert not first.take(encoded("["))


async def test_texts_with_signs_of_the_grammar_are_only_text() -> None:
    odd = 'a"b\\c\n%json {} /x/ \u00e9\U0001f600 <tool> ${}'
    matcher = await opened(guide(GuideForm(odd, "true", odd)))

    assert matcher.take(encoded(odd + "1" + odd))
    assert matcher.accepting


async def test_free_text_may_hold_all_but_the_trigger() -> None:
    call = GuideForm("<call>", '{"const": 1}', "</call>")
    matcher = await opened(guide(call, trigger="<call>", separator="\n"))

    assert matcher.take(encoded("I <could> call <cal\n"))
    assert matcher.accepting
    assert matcher.take(encoded("<call>1</call>"))
    assert matcher.take(encoded("\n and then <call>"))
    assert not matcher.accepting
    assert not matcher.take(encoded("2"))


@pytest.mark.parametrize("gap", ["", "\n", "\n\n"])
async def test_a_model_may_reason_before_its_guide_begins(gap: str) -> None:
    matcher = await opened(guide(after="</think>"))

    assert matcher.take(encoded("Is it [true? <b> or\nnot"))
    assert not matcher.accepting
    assert matcher.take(encoded(f"</think>{gap}[true, true]"))
    assert matcher.accepting
    assert not matcher.take(encoded("x"))


async def test_a_trigger_means_nothing_while_the_model_reasons() -> None:
    call = GuideForm("<call>", '{"const": 1}', "</call>")
    matcher = await opened(guide(call, trigger="<call>", separator="\n", after="</think>"))

    assert matcher.take(encoded("a <call> of what?</think>\n\nwell <call>1</call>"))
    assert matcher.accepting
    assert not (await opened(guide(call, trigger="<call>", after="</think>"))).take(encoded("</think><call>2"))


async def test_one_call_is_the_end_where_there_is_no_separator() -> None:
    matcher = await opened(guide(GuideForm("<call>", '{"const": 1}', "</call>"), trigger="<call>"))

    assert matcher.take(encoded("so: <call>1</call>"))
    assert matcher.allowed() == 1 << IM_END


@pytest.mark.parametrize(
    "forms",
    [
        (GuideForm("", '"' + "x" * GUIDE_CHARACTERS_MOST + '"', ""),),
        tuple(GuideForm(str(at), "{}", "") for at in range(FORMS_MOST + 1)),
    ],
    ids=["long", "many"],
)
def test_a_guide_has_a_size_limit(forms: tuple[GuideForm, ...]) -> None:
    with pytest.raises(InvalidRequest, match="too large") as refused:
        write_grammar(guide(*forms))

    assert refused.value.param == "tools"


async def test_the_reason_of_a_refusal_shows_nothing_of_our_grammar() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await opened(guide(GuideForm("secret", '{"type": "string", "pattern": "(["}', "")))

    assert "unclosed character class" in refused.value.message
    for ours in ("secret", "start:", "json0", "x-guidance", "\n"):
        assert ours not in refused.value.message


async def test_a_clients_own_options_of_the_grammar_have_no_effect() -> None:
    matcher = await opened(guide(GuideForm("", '{"type": "array", "x-guidance": {"whitespace_flexible": true}}', "")))

    assert not matcher.take(encoded("[ "))


async def test_an_engine_that_leaves_its_guide_fails_the_answer() -> None:
    follower = GuideFollower(await opened(), (), {IM_END})
    assert follower.take(encoded("[true")) == 0

    with pytest.raises(EngineFailed):
        follower.take(encoded(" and so on"))


async def test_an_engine_that_ends_too_early_fails_the_answer() -> None:
    follower = GuideFollower(await opened(), (), {IM_END})
    follower.take([*encoded("[true"), IM_END])

    with pytest.raises(EngineFailed):
        follower.end()


async def test_what_is_made_again_is_dropped_in_whatever_pieces_it_comes() -> None:
    follower = GuideFollower(await opened(), encoded("[true"), {IM_END})

    assert follower.take(encoded("[tr")) == 3
    assert follower.take(encoded("ue, false]")) == 2
    assert follower.take([IM_END]) == 0
    follower.end()


async def test_an_answer_that_comes_out_differently_fails() -> None:
    follower = GuideFollower(await opened(), encoded("[false"), {IM_END})

    with pytest.raises(EngineFailed):
        follower.take(encoded("[true"))


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "integer"},
            {"type": "number"},
            {"type": "string"},
            {"type": "boolean"},
            {"enum": ["a", 1, None, "\u00e9\n"]},
            {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 3}, inner),
        st.builds(lambda any_of: {"anyOf": any_of}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[:2],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        ),
    ),
    max_leaves=6,
)


@given(SCHEMAS, st.lists(st.integers(0, 500), min_size=1, max_size=5))
async def test_the_simulators_guided_answer_is_valid_json_that_ends(schema: Any, prompt_ids: list[int]) -> None:
    of = guide(GuideForm("", json.dumps(schema), ""))
    own = grammars()

    whole = guided_ids(await own.open(of), prompt_ids, (), tokens=16, limit=2000)
    half = len(whole) // 2
    resumed = guided_ids(await own.open(of), prompt_ids, whole[:half], tokens=16, limit=2000)

    assert whole[-1] == IM_END
    json.loads(decode(whole))
    assert resumed == whole
