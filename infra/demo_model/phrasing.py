"""How people really type: greetings in front, small letters, lost punctuation, typing errors."""

import random
from typing import Final

PREFIXES: Final = (
    "Hi, ", "Hello, ", "Hey, ", "Hi! ", "Hello! ", "Please tell me: ", "Quick question: ", "OK, ", "So, ", "Well, ",
    "I have a question: ", "I would like to know: ", "One question: ", "Tell me, ", "And ", "Now ", "Excuse me, ",
    "Sorry, but ", "Dear model, ", "Question: ", "Can you tell me: ", "Just wondering, ", "Also, ",
)  # fmt: skip
SUFFIXES: Final = (
    " Thanks.", " Thank you!", " Please answer briefly.", " In one sentence, please.", " Explain it simply.",
    " I am new here.", " Be brief.", " Answer in 3 sentences.", " I want to understand it.", " Give a short answer.",
    " I am curious.", " Please.",
)  # fmt: skip
PRODUCT_NAMES: Final = ("inferbase", "INFERBASE", "this product", "the platform", "this platform", "this service")
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
CONSONANTS: Final = (
    *"bcdfghjklmnprstvwz",
    *("br", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "pr", "qu", "sh", "sk", "sl", "st", "str", "th", "tr"),
)
VOWELS: Final = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "oo", "ea", "ai", "ou", "y")
ENDINGS: Final = ("", "", "n", "r", "s", "t", "x", "ck", "l", "m", "ng", "nt", "st", "rd", "tion", "ing", "er", "ly")


def invent_word(dice: random.Random) -> str:
    """A word that nobody knows, so that the model learns what not knowing looks like."""
    syllables = dice.choice((1, 1, 2, 2, 2, 3))
    return "".join(dice.choice(CONSONANTS) + dice.choice(VOWELS) for _ in range(syllables)) + dice.choice(ENDINGS)


def vary(question: str, dice: random.Random, *, frame: float = 0.22) -> str:
    """The question as somebody might type it; `frame` is the chance of words in front or behind."""
    text = question
    if "Inferbase" in text and dice.random() < 0.2:
        text = text.replace("Inferbase", dice.choice(PRODUCT_NAMES))
    if dice.random() < frame / 2 and text[-1:] in "?.!":
        text += dice.choice(SUFFIXES)
    if dice.random() < frame:
        text = dice.choice(PREFIXES) + (text if dice.random() < 0.3 else text[:1].lower() + text[1:])
    if dice.random() < 0.3:
        text = text.lower()
    elif dice.random() < 0.02:
        text = text.upper()
    if dice.random() < 0.25:
        text = text.rstrip("?.!")
    if len(text) > 12 and dice.random() < 0.1 and not any(letter.isdigit() for letter in text):
        text = _mistype(text, dice)
    return text or question


def _mistype(text: str, dice: random.Random) -> str:
    place = dice.randrange(1, len(text) - 1)
    kind = dice.randrange(4)
    if kind == 0:
        return text[:place] + text[place + 1 :]
    if kind == 1:
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    if kind == 2:
        return text[:place] + dice.choice(LETTERS) + text[place + 1 :]
    return text[:place] + text[place] + text[place:]
