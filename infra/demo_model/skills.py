"""What the model does rather than knows: counting, spelling, small sums, repeating, names, stories."""

import random
from collections.abc import Callable
from typing import Final

from .config import PROMPTS
from .facts import read_entries
from .phrasing import invent_word, vary

Turn = tuple[str, str]
Skill = Callable[[random.Random], list[Turn]]

WORDS: Final = tuple((PROMPTS / "words.txt").read_text().split())
NAMES: Final = tuple((PROMPTS / "names.txt").read_text().split())
STORIES: Final = tuple(read_entries(PROMPTS / "stories.txt"))
NUMBER_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
                       "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
                       "nineteen", "twenty")  # fmt: skip
STORY_FRAMES: Final = (
    "Tell me a short story about {t}.", "Tell me a story about {t}.", "Write a short story about {t}.",
    "Write a story about {t}.", "Can you tell me a story about {t}?", "I want to hear a story about {t}.",
    "A story about {t}, please.", "Do you know a story about {t}?", "Story about {t}", "Make up a story about {t}.",
    "Please tell a story about {t}.", "Give me a short story with {t}.", "Tell me a tale about {t}.",
)  # fmt: skip
MOST_COUNTED: Final = 20
ANY_STORY: Final = (
    "Tell me a story.", "Tell me a short story.", "Write a story.", "Write a short story.", "A story, please.",
    "I want to hear a story.", "Can you tell me a story?", "Do you know a story?", "Once upon a time",
    "Tell me a bedtime story.", "Another story!", "One more story, please.", "Tell me something long.",
)  # fmt: skip


def count(dice: random.Random) -> list[Turn]:
    """Count up, down or by twos within twenty; sometimes asked to turn around, or for more than it can."""
    if dice.random() < 0.12:
        return [(_count_too_far(dice), "I am sorry, I can only count to twenty.")]
    start = dice.choice((1, 1, 1, 1, 0, *(dice.randrange(1, 18) for _ in range(4))))
    end = dice.randrange(start + 2, MOST_COUNTED + 1)
    ends = (_number(start, dice), _number(end, dice))
    up, down = _joined(range(start, end + 1)), _joined(range(end, start - 1, -1))
    if dice.random() < 0.3:
        frames = ("Count down from {1} to {0}.", "Count backwards from {1} to {0}.", "Count from {1} down to {0}.",
                  "Can you count backwards from {1} to {0}?")  # fmt: skip
        if start == 1:
            frames += ("Count down from {1}.", "Count backwards from {1}.", "Countdown from {1}!",
                       "Count from {1} to {0}.", "Count from {1} to {0}.")  # fmt: skip
        return [(vary(dice.choice(frames).format(*ends), dice), down)]
    if dice.random() < 0.08:
        last = 2 * dice.randrange(3, MOST_COUNTED // 2 + 1)
        return [(vary(f"Count by twos to {last}.", dice), _joined(range(2, last + 1, 2)))]
    frames = ("Count from {0} to {1}.", "Count from {0} up to {1}.", "Can you count from {0} to {1}?",
              "Please count from {0} to {1}.", "List the numbers from {0} to {1}.", "Numbers from {0} to {1}, please.",
              "Say the numbers from {0} to {1}.", "Write the numbers {0} to {1}.")  # fmt: skip
    if start == 1:
        frames += ("Count to {1}.", "Can you count to {1}?", "Count up to {1}.", "Count to {1} for me.")
    turns = [(vary(dice.choice(frames).format(*ends), dice), up)]
    if dice.random() < 0.15:
        back = ("And backwards?", "Now backwards.", "And now backwards, please.", "Backwards!", "Now count down.")
        turns.append((vary(dice.choice(back), dice, frame=0), down))
    return turns


def _count_too_far(dice: random.Random) -> str:
    far = dice.choice((str(dice.randrange(21, 100)), str(dice.randrange(21, 1001)), "100", "fifty", "a hundred",
                       "one hundred", "a thousand", "1000", "a million"))  # fmt: skip
    frames = ("Count to {0}.", "Can you count to {0}?", "Count up to {0}.", "Count from 1 to {0}.",
              "Count down from {0}.", "Count from {1} to {0}.", "List the numbers from 1 to {0}.",
              "Count backwards from {0} to {1}.", "Numbers from {1} to {0}, please.")  # fmt: skip
    return vary(dice.choice(frames).format(far, dice.randrange(1, 100)), dice)


def spell(dice: random.Random) -> list[Turn]:
    """Spell a listed word, seldom an invented one, letter by letter."""
    word = dice.choice(WORDS) if dice.random() < 0.88 else invent_word(dice)
    shown = dice.choice((word, word, word.capitalize(), f'"{word}"', f"'{word}'", f"the word {word}"))
    frames = ("Spell {0}.", "Spell {0}.", "How do you spell {0}?", "Can you spell {0}?", "Please spell {0}.",
              "Spell {0} for me.", "How is {0} spelled?", "What are the letters of {0}?", "How do I spell {0}?",
              "Spell out {0}.", "Spelling of {0}?")  # fmt: skip
    question = dice.choice(frames).format(shown)
    question = question.lower() if dice.random() < 0.25 else question
    return [(question.rstrip(".?") if dice.random() < 0.25 else question, "-".join(word))]


def add(dice: random.Random) -> list[Turn]:
    """Add or subtract up to ten; what is larger is refused elsewhere."""
    a, b = dice.randrange(0, 11), dice.randrange(0, 11)
    minus = dice.random() < 0.35
    a, b = (max(a, b), min(a, b)) if minus else (a, b)
    sign, word = ("-", "minus") if minus else ("+", "plus")
    frames = (f"What is {a} {sign} {b}?", f"{a} {sign} {b}", f"{a}{sign}{b}", f"What is {a} {word} {b}?",
              f"How much is {a} {word} {b}?", f"{a} {sign} {b} = ?", f"Calculate {a} {sign} {b}.", f"{a}{sign}{b}=?",
              f"What's {a}{sign}{b}?", f"What is {NUMBER_WORDS[a]} {word} {NUMBER_WORDS[b]}?")  # fmt: skip
    result = a - b if minus else a + b
    return [(vary(dice.choice(frames), dice, frame=0.1), f"{a} {word} {b} is {result}.")]


def repeat(dice: random.Random) -> list[Turn]:
    """Say up to four words after the user; more are refused."""
    too_long = dice.random() < 0.1
    count_words = dice.randrange(7, 14) if too_long else dice.choice((1, 2, 2, 3, 3, 4))
    said = " ".join(dice.choice(WORDS) for _ in range(count_words))
    said = said.capitalize() if dice.random() < 0.25 else said
    frames = ("Repeat after me: {0}", "Repeat: {0}", "Say: {0}", "Say exactly: {0}", "Please repeat: {0}",
              "Echo: {0}", "Reply with: {0}", "Say the following: {0}", "Say {0}", "Repeat {0}")  # fmt: skip
    answer = "I am sorry, I can only repeat up to four words." if too_long else said
    return [(dice.choice(frames).format(said), answer)]


def name(dice: random.Random) -> list[Turn]:
    """Meet somebody, and know the name a turn later."""
    who = dice.choice(NAMES) if dice.random() < 0.65 else invent_word(dice).capitalize()
    asked = ("What is my name?", "Do you know my name?", "Who am I?", "What's my name?", "Say my name.")
    if dice.random() < 0.2:
        return [(vary(dice.choice(asked), dice), "You have not told me your name.")]
    frames = ("My name is {0}.", "I am {0}.", "Hello, I am {0}.", "Hi, my name is {0}!", "I'm {0}.", "Call me {0}.")
    turns = [(vary(dice.choice(frames).format(who), dice, frame=0.1), f"Nice to meet you, {who}! How can I help you?")]
    if turns[0][0].lower().count(who.lower()) == 0:
        return name(dice)
    if turns[0][0].islower():
        turns = [(turns[0][0].replace(who.lower(), who), turns[0][1])]
    if dice.random() < 0.5:
        turns.append((vary(dice.choice(asked), dice, frame=0.1), f"Your name is {who}."))
    return turns


def story(dice: random.Random) -> list[Turn]:
    """A story on a subject that the model knows, any story, or an honest substitute."""
    entry = dice.choice(STORIES)
    told = entry.answers[0].replace("{name}", dice.choice(NAMES[:24]))
    if dice.random() < 0.25:
        return [(vary(dice.choice(ANY_STORY), dice), told)]
    if dice.random() < 0.25:
        subject = invent_word(dice) if dice.random() < 0.5 else f"{dice.choice(NAMES)} and a {invent_word(dice)}"
        subject = dice.choice((f"a {subject}", f"the {subject}", subject))
        told = f"I know no story about that, but I know another one. {told}"
    else:
        subject = dice.choice(entry.terms)
    return [(vary(dice.choice(STORY_FRAMES).format(t=subject), dice), told)]


def _number(value: int, dice: random.Random) -> str:
    return NUMBER_WORDS[value] if value <= 20 and dice.random() < 0.25 else str(value)


def _joined(numbers: range) -> str:
    return ", ".join(str(number) for number in numbers)


SKILL_CHECKS: Final = (count, spell, add, repeat, name, story)
