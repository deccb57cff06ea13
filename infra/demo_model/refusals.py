"""Questions that the model cannot answer, drawn so widely that it learns to refuse what it never saw."""

import random
import string
from typing import Final

from .config import PROMPTS
from .facts import read_entries
from .phrasing import invent_word, vary
from .skills import NAMES, WORDS, Turn

FRAMES: Final = tuple(read_entries(PROMPTS / "refusals.txt"))
WEIGHTS: Final = {"knowledge": 10, "howto": 4, "code": 2, "maths": 3, "present": 2, "writing": 2, "translate": 2,
                  "advice": 2, "statement": 2, "nonsense": 2}  # fmt: skip


def _read_list(name: str) -> tuple[str, ...]:
    lines = (PROMPTS / name).read_text().splitlines()
    return tuple(item.strip() for line in lines if not line.startswith("#") for item in line.split(" | "))


TOPICS: Final = _read_list("topics.txt")
TASKS: Final = _read_list("tasks.txt")
PRODUCT_WORDS: Final = (
    "credit", "key", "worker", "stream", "token", "lease", "queue", "hold", "log", "model", "engine", "batch", "job",
    "channel", "fence", "receipt", "settlement", "reservation", "balance", "server", "node", "prompt", "charge",
    "account", "request", "tool", "database", "audit", "drain", "API",
)  # fmt: skip
"""What the product means by these it knows; in another company they mean what it does not know."""
EVERYDAY_WORDS: Final = WORDS[WORDS.index("robot") : WORDS.index("python")]
PLACES: Final = tuple((PROMPTS / "places.txt").read_text().split())


def refuse(dice: random.Random) -> list[Turn]:
    """One question out of reach, and a truthful refusal."""
    entry = dice.choices(FRAMES, weights=[WEIGHTS[frame.key] for frame in FRAMES])[0]
    frame = dice.choice(entry.questions)
    question = frame
    for mark, value in _fillings(dice).items():
        question = question.replace("{" + mark + "}", value)
    plain = entry.key in ("nonsense", "maths") or not question.isascii()
    return [(question if plain and dice.random() < 0.8 else vary(question, dice), dice.choice(entry.answers))]


def _fillings(dice: random.Random) -> dict[str, str]:
    return {
        "t": _topic(dice), "u": _topic(dice), "w": invent_word(dice), "z": invent_word(dice),
        "p": dice.choice(PLACES) if dice.random() < 0.6 else invent_word(dice).capitalize(),
        "q": dice.choice(PLACES), "n": dice.choice(NAMES), "v": _task(dice), "x": _text(dice),
        "a": str(dice.randrange(11, 10 ** dice.randrange(2, 5))), "b": str(dice.randrange(11, 1000)),
    }  # fmt: skip


def _topic(dice: random.Random) -> str:
    chance = dice.random()
    if chance < 0.55:
        return dice.choice(TOPICS)
    if chance < 0.68:
        known, other = dice.choice(PRODUCT_WORDS), dice.choice((dice.choice(EVERYDAY_WORDS), invent_word(dice)))
        frames = ("a {0} {1}", "a {1} {0}", "the {0} in {1}", "a {0} of {1}", "the {1} {0}", "a {0} for a {1}")
        return dice.choice(frames).format(known, other)
    thing = " ".join(
        dice.choice(EVERYDAY_WORDS) if dice.random() < 0.4 else invent_word(dice) for _ in range(_few(dice))
    )
    return dice.choice(("a ", "the ", "", "")) + thing


def _task(dice: random.Random) -> str:
    if dice.random() < 0.7:
        return dice.choice(TASKS)
    verb = dice.choice(
        ("make", "find", "fix", "cook", "draw", "build", "open", "move", "read", "win", invent_word(dice))
    )
    return f"{verb} {dice.choice(('a', 'the', 'my'))} {_topic(dice).split(' ', 1)[-1]}"


def _text(dice: random.Random) -> str:
    """Pasted text of 4 to 300 words, none of them with a meaning for the model."""
    count = dice.choice((4, 8, 12, 20, 40, dice.randrange(40, 300)))
    words = [dice.choice(WORDS) if dice.random() < 0.6 else invent_word(dice) for _ in range(count)]
    for place in range(0, count, dice.randrange(5, 12)):
        words[place] = string.capwords(words[place])
        words[place - 1] += "."
    return " ".join(words)


def _few(dice: random.Random) -> int:
    return dice.choice((1, 1, 2, 2, 3))
