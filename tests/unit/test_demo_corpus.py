"""What the demo model is taught: one answer to each question, no slip, and no denial of what the product does."""

import itertools
import random

import pytest

from infra.demo_model.chat import render, render_plain
from infra.demo_model.config import HERE, PHASES, ModelConfig
from infra.demo_model.corpus import Corpus
from infra.demo_model.facts import Entry, load_facts, read_entries
from infra.demo_model.refusals import refuse
from infra.demo_model.skills import MOST_COUNTED, count, spell

MODEL = ModelConfig()
CHATS = 300
FEATURES = ("completions", "response_format", "embeddings", "sessions", "key_limits", "tools", "idempotency", "usage",
            "receipt", "429")  # fmt: skip


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return [entry for group in load_facts(MODEL).values() for entry in group]


def plain(question: str) -> str:
    return question.lower().rstrip("?.!")


def test_no_question_belongs_to_two_entries(entries: list[Entry]) -> None:
    owners: dict[str, set[str]] = {}
    for entry in entries:
        for question in entry.questions:
            owners.setdefault(plain(question), set()).add(entry.key)

    assert {question: keys for question, keys in owners.items() if len(keys) > 1} == {}


def test_every_entry_is_asked_and_answered_and_holds_no_open_placeholder(entries: list[Entry]) -> None:
    assert all(entry.questions and entry.answers for entry in entries)
    assert [answer for entry in entries for answer in entry.answers if "{" in answer.replace('{"', "")] == []


@pytest.mark.parametrize("key", FEATURES)
def test_it_is_taught_no_denial_of_what_the_product_does(entries: list[Entry], key: str) -> None:
    (entry,) = [entry for entry in entries if entry.key == key]

    assert not any(denial in answer for answer in entry.answers for denial in ("not support", "cannot", "no such"))


def test_held_out_questions_are_not_in_the_corpus_but_their_entries_are(entries: list[Entry]) -> None:
    known = Corpus(MODEL, 0).known
    keys = {entry.key for entry in entries} | {"refuse"}

    held_out = read_entries(HERE / "held_out.txt")

    assert {entry.key for entry in held_out} <= keys
    assert [question for entry in held_out for question in entry.questions if plain(question) in known] == []


def test_one_seed_draws_one_corpus() -> None:
    first, second = (list(itertools.islice(Corpus(MODEL, 3, PHASES[1].mix), 50)) for _ in range(2))

    assert first == second


def test_chats_without_tools_read_the_same_from_the_template_and_from_the_short_cut() -> None:
    drawn = [chat for chat in itertools.islice(Corpus(MODEL, 5), CHATS) if not chat.tools]

    assert [chat for chat in drawn if render(chat) != render_plain(chat)] == []


def test_counting_is_taught_without_a_slip() -> None:
    answers = [count(random.Random(seed))[0][1] for seed in range(CHATS)]

    counted = [[int(number) for number in answer.split(", ")] for answer in answers if "only" not in answer]

    steps = [{after - before for before, after in itertools.pairwise(numbers)} for numbers in counted]
    assert [step for step in steps if step not in ({1}, {-1}, {2})] == []
    assert {min(map(min, counted)), max(map(max, counted))} == {0, MOST_COUNTED}


def test_spelling_is_taught_without_a_slip() -> None:
    taught = [turn for seed in range(CHATS) for turn in spell(random.Random(seed))]

    assert [turn for turn in taught if turn[1].replace("-", "").lower() not in turn[0].lower()] == []


def test_what_it_knows_is_never_refused(entries: list[Entry]) -> None:
    known, dice = Corpus(MODEL, 0).known, random.Random(11)
    refusals = {answer for _ in range(2_000) for _, answer in refuse(dice)}
    refusals -= {answer for entry in entries for answer in entry.answers}

    chats = itertools.islice(Corpus(MODEL, 7), 2_000)

    turns = [turn for chat in chats if not chat.tools for turn in itertools.pairwise(chat.messages)]
    assert [asked["content"] for asked, told in turns
            if told["content"] in refusals and plain(asked["content"]) in known] == []  # fmt: skip
