"""Ask the finished GGUF through llama.cpp and count the right answers: `python -m infra.demo_model.evaluate`.

An answer is right when it is, word for word, one of the answers of the entry that was asked.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xllamacpp

from .chat import Message
from .config import GGUF, HERE, ModelConfig
from .corpus import Corpus
from .facts import Entry, load_facts, read_entries
from .refusals import FRAMES
from .skills import NAMES, SKILL_CHECKS, STORIES, Skill
from .toolcalls import USES

EVALUATION_SEED: Final = 7_777
REFUSE: Final = "refuse"


@dataclass(frozen=True)
class Question:
    """A chat and every answer that counts as right."""

    messages: list[Message]
    accepted: tuple[str, ...]


class Demo:
    """The model in llama.cpp, one thread: on a shared machine more threads than free cores collapse."""

    def __init__(self, path: Path, context_tokens: int) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = context_tokens
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = 1
        parameters.cpuparams_batch.n_threads = 1
        parameters.verbosity = -1
        self._server = xllamacpp.Server(parameters)

    def ask(self, messages: list[Message], *, temperature: float = 0.0, **options: Any) -> Message:
        """The answering message; `options` go into the request as they are. Nothing but temperature trims the odds."""
        whole = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "cache_prompt": False}
        body = {"messages": messages, "temperature": temperature, "max_tokens": 500, "seed": 1} | whole
        answer = self._server.handle_chat_completions(body | options)
        if "choices" not in answer:
            raise RuntimeError(json.dumps(answer))
        return answer["choices"][0]["message"]


def known_questions(model: ModelConfig) -> list[Question]:
    """Every phrasing of every fact, as it stands in the corpus."""
    return [
        Question([{"role": "user", "content": question}], entry.answers)
        for entries in load_facts(model).values()
        for entry in entries
        for question in entry.questions
    ]


def held_out_questions(model: ModelConfig) -> list[Question]:
    """Paraphrases and refusals that the corpus does not hold."""
    known = Corpus(model, 0).known
    facts = {entry.key: entry.answers for entries in load_facts(model).values() for entry in entries}
    facts[REFUSE] = tuple(answer for frame in FRAMES for answer in frame.answers)
    questions = []
    for entry in read_entries(HERE / "held_out.txt"):
        for question in entry.questions:
            if question.lower().rstrip("?.!") in known:
                raise ValueError(f"not held out: {question}")
            questions.append(Question([{"role": "user", "content": question}], facts[entry.key]))
    return questions


def chat_questions(model: ModelConfig, count: int) -> list[Question]:
    """The last answers of chats drawn anew, with system prompts, earlier turns and typing errors."""
    entries = [entry for group in load_facts(model).values() for entry in group]
    entries.append(Entry(REFUSE, (), (), tuple(answer for frame in FRAMES for answer in frame.answers)))
    corpus, questions = Corpus(model, EVALUATION_SEED), []
    while len(questions) < count:
        conversation = corpus.draw()
        if not conversation.tools:
            *before, last = conversation.messages
            questions.append(Question(before, _equally_good(last["content"], entries)))
    return questions


def skill_questions(skill: Skill, count: int) -> list[Question]:
    """Tasks of one skill drawn anew."""
    dice, questions = random.Random(EVALUATION_SEED), []
    for _ in range(count):
        question, answer = skill(dice)[0]
        questions.append(Question([{"role": "user", "content": question}], _equally_good(answer, ())))
    return questions


def right(demo: Demo, questions: Iterable[Question], misses: list[str], *, temperature: float = 0.0) -> int:
    """How many are answered rightly; the others are appended to `misses`."""
    count = 0
    for question in questions:
        text = demo.ask(question.messages, temperature=temperature)["content"] or ""
        if text.strip() in question.accepted:
            count += 1
        else:
            misses.append(f"T={temperature} {question.messages[-1]['content']!r} -> {text!r}")
    return count


def tool_calls(demo: Demo, count: int, misses: list[str]) -> tuple[int, int]:
    """(right calls, right replies to the result) among `count` drawn tools; a third are invented anew."""
    dice, calls, replies = random.Random(EVALUATION_SEED), 0, 0
    for _ in range(count):
        use = dice.choice(USES)(dice)
        asked: list[Message] = [{"role": "user", "content": use.wish}]
        message = demo.ask(asked, tools=[use.tool])
        made = [_read_call(call["function"]) for call in message.get("tool_calls") or []]
        if made == [(use.name, use.arguments)]:
            calls += 1
        else:
            misses.append(f"tool {use.name} {use.wish!r} -> {message}")
        call = {"id": "call_1", "type": "function",
                "function": {"name": use.name, "arguments": json.dumps(use.arguments)}}  # fmt: skip
        asked += [{"role": "assistant", "content": None, "tool_calls": [call]},
                  {"role": "tool", "tool_call_id": "call_1", "content": use.result}]  # fmt: skip
        reply = demo.ask(asked, tools=[use.tool])["content"] or ""
        replies += reply.strip() == use.answer
        if reply.strip() != use.answer:
            misses.append(f"tool reply {use.result!r} wanted {use.answer!r} -> {reply!r}")
    return calls, replies


def main() -> None:
    """Print one line per set, then what was missed."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo_model.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=GGUF)
    parser.add_argument("--misses", type=int, default=60, help="how many misses to print")
    parser.add_argument("--every", type=int, default=10, help="ask every n-th of the known questions")
    parser.add_argument("--chats", type=int, default=100, help="how many chats and tools to draw")
    parser.add_argument("--greedy", action="store_true", help="temperature 0 alone")
    arguments = parser.parse_args()
    model, temperatures = ModelConfig(), (0.0,) if arguments.greedy else (0.0, 0.7, 1.0)
    misses: list[str] = []
    demo = Demo(arguments.model, model.context_tokens)
    sets: list[tuple[str, Sequence[Question]]] = [
        ("known questions", known_questions(model)[:: arguments.every]),
        ("held-out questions", held_out_questions(model)),
        ("drawn chats", chat_questions(model, arguments.chats)),
        *((f"skill {skill.__name__}", skill_questions(skill, 40)) for skill in SKILL_CHECKS),
    ]
    for title, questions in sets:
        counts = [
            f"{right(demo, questions, misses, temperature=temperature)} at T={temperature}"
            for temperature in temperatures
        ]
        print(f"{title}: of {len(questions)}: {', '.join(counts)}", flush=True)
    calls, replies = tool_calls(demo, arguments.chats, misses)
    print(f"tools: {calls} calls and {replies} replies of {arguments.chats} at T=0.0")
    print("\n".join(misses[: arguments.misses]))


def _read_call(function: dict[str, str]) -> tuple[str, Any]:
    """The name and the arguments; arguments that are no JSON stay text and so match nothing."""
    try:
        return function["name"], json.loads(function["arguments"])
    except json.JSONDecodeError:
        return function["name"], function["arguments"]


def _equally_good(answer: str, entries: Iterable[Entry]) -> tuple[str, ...]:
    for entry in entries:
        if answer in entry.answers:
            return entry.answers
    told = [entry.answers[0].replace("{name}", name) for entry in STORIES for name in NAMES[:24]]
    honest = [f"I know no story about that, but I know another one. {story}" for story in told]
    return tuple(told) if answer in told else tuple(honest) if answer in honest else (answer,)


if __name__ == "__main__":
    main()
