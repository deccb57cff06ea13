"""Facts files: what is asked and what is answered. `@` opens an entry, `~` names terms, `?` asks, `!` answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config import FACTS, ModelConfig, fact_values

TERM_FRAMES: Final = (
    "What is {t}?",
    "What's {t}?",
    "What does {t} mean?",
    "Explain {t}.",
    "Can you explain {t}?",
    "Tell me about {t}.",
    "Define {t}.",
    "What do you mean by {t}?",
    "Please explain what {t} is.",
    "Could you tell me what {t} is?",
    "I do not understand {t}.",
    "{t}?",
    "{t}",
    "What is {t} in Inferbase?",
    "Describe {t}.",
    "What exactly is {t}?",
    "Tell me what {t} is.",
    "What can you tell me about {t}?",
    "Do you know what {t} is?",
    "What is meant by {t}?",
)


@dataclass(frozen=True)
class Entry:
    """One thing to know: `questions` are all phrasings, `answers` are equally good."""

    key: str
    terms: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def read_entries(path: Path) -> list[Entry]:
    """Read one facts file, placeholders left as they are."""
    entries: list[Entry] = []
    for line in path.read_text().splitlines():
        mark, _, text = line.partition(" ")
        if mark == "@":
            entries.append(Entry(text, (), (), ()))
        elif mark in ("~", "?", "!"):
            last = entries.pop()
            terms, questions, answers = last.terms, last.questions, last.answers
            if mark == "~":
                terms += tuple(term.strip() for term in text.split(" | "))
            elif mark == "?":
                questions += (text,)
            else:
                answers += (text,)
            entries.append(Entry(last.key, terms, questions, answers))
        elif line and not line.startswith("#"):
            raise ValueError(f"{path.name}: cannot read {line!r}")
    return entries


def load_facts(model: ModelConfig) -> dict[str, list[Entry]]:
    """All facts by file name, definitions spelled out and placeholders filled."""
    values = fact_values(model)
    return {path.stem: [_complete(entry, values) for entry in read_entries(path)] for path in sorted(FACTS.iterdir())}


def _complete(entry: Entry, values: dict[str, str]) -> Entry:
    defined = [frame.format(t=term) for term in entry.terms for frame in TERM_FRAMES]
    questions = tuple(question[:1].upper() + question[1:] for question in (*entry.questions, *defined))
    answers = list(entry.answers)
    for name, value in values.items():
        answers = [answer.replace("{" + name + "}", value) for answer in answers]
    return Entry(entry.key, entry.terms, questions, tuple(answers))
