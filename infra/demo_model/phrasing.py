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
REWORDINGS: Final = {
    "How do I ": (
        "How can I ", "How could I ", "How would I ", "How do you ", "How does one ", "How to ", "How should I ",
        "What is the way to ", "Tell me how to ", "Explain how to ", "Show me how to ", "I want to ",
        "Please explain how I can ", "I would like to ", "Is there a way to ", "What do I do to ", "What must I do to ",
        "What is the best way to ",
    ),
    "How can I ": ("How do I ", "How could I ", "In what way can I ", "Please tell me how I can "),
    "What happens when ": ("What happens if ", "What if ", "What will happen when ", "What do you do when ", "And if "),
    "What happens if ": ("What happens when ", "What if ", "What will happen if ", "Tell me what happens if "),
    "Can I ": ("Could I ", "May I ", "Is it possible to ", "Am I able to ", "Is there a way to "),
    "Where do I ": ("Where can I ", "Where should I ", "Where could I "),
    "Where can I ": ("Where do I ", "Where could I "),
    "Which ": ("What ", "Tell me which "),
    "What does ": ("Tell me what ", "I wonder what "),
    "Why do I ": ("What is the reason that I ", "Why did I ", "I do not know why I "),
    "Why is ": ("What is the reason that ", "Why was "),
    "What is ": ("What's ", "Whats ", "Do you know what is ", "So what is ", "What would you say is "),
    "What are ": ("What're ", "Do you know what are ", "So what are "),
    "How does ": ("Explain how ", "In what way does ", "Can you explain how "),
    "How is ": ("In what way is ", "Explain how ", "How was "),
    "Who ": ("Tell me who ", "So who ", "Which person "),
    "Do you ": ("Can you tell me if you ", "So do you ", "I wonder if you "),
    "Are you ": ("Aren't you ", "So are you ", "I think that you are "),
    "Tell me ": ("Could you tell me ", "Please tell me ", "Would you tell me "),
}  # fmt: skip
SLANG: Final = (
    (" you ", " u "), ("you?", "u?"), (" are ", " r "), ("please", "pls"), ("hank you", "hank u"), (" not ", "n't "),
    ("What is", "whats"), ("I am", "im"), ("Do not", "dont"), ("What's", "whats"), ("because", "cuz"),
)  # fmt: skip
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
    if dice.random() < 0.3:
        text = _reword(text, dice)
    if dice.random() < 0.04:
        for proper, sloppy in SLANG:
            text = text.replace(proper, sloppy)
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


def _reword(text: str, dice: random.Random) -> str:
    for opening, others in REWORDINGS.items():
        if text.startswith(opening):
            return dice.choice(others) + text[len(opening) :]
    return text


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
