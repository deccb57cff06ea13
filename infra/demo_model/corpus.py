"""The corpus: conversations without end from one seed, every part in its share."""

import random
from collections.abc import Iterator
from typing import Final

from .chat import Conversation, Message
from .config import PROMPTS, Mix, ModelConfig
from .facts import Entry, load_facts
from .phrasing import vary
from .refusals import refuse
from .skills import Turn, add, count, name, repeat, spell, story
from .toolcalls import offer_tools

SYSTEM_PROMPTS: Final = tuple((PROMPTS / "system_prompts.txt").read_text().splitlines())
TURNS: Final = (1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6)
SKILLS: Final = (refuse, count, spell, add, repeat, name, story)
FIRST_MIX: Final = Mix()
TYPED: Final = 1.6
"""How much likelier a phrasing of its own is than one made from a term and a frame."""


class Corpus:
    """Draws conversations; two with the same seed and mix draw the same ones."""

    def __init__(self, model: ModelConfig, seed: int, mix: Mix = FIRST_MIX) -> None:
        self._dice = random.Random(seed)
        self._tool_share = mix.tool_share
        self._turn_weights = (mix.facts, mix.refuse, mix.count, mix.spell, mix.add, mix.repeat, mix.name, mix.story)
        files = load_facts(model)
        entries = [entry for group in files.values() for entry in group]
        self._entries = entries
        self._smalltalk = files["smalltalk"]
        self._weights = [3 if entry in files["smalltalk"][:8] else 2 if len(entry.terms) > 1 else 1.5
                         for entry in entries]  # fmt: skip
        self.known = {question.lower().rstrip("?.!") for entry in entries for question in entry.questions}

    def __iter__(self) -> Iterator[Conversation]:
        while True:
            yield self.draw()

    def draw(self) -> Conversation:
        """One conversation, with or without a system prompt, tools and earlier turns."""
        dice = self._dice
        opening = self._system_prompt()
        if dice.random() < self._tool_share:
            messages, tools = offer_tools(dice)
            if dice.random() < 0.2:
                messages = self._messages(1)
            elif dice.random() < 0.3:
                messages = self._messages(1) + messages
            spaced = dice.random() < 0.85
            return Conversation(opening + messages, tools, (", ", ": ") if spaced else (",", ":"), dice.random() < 0.3)
        return Conversation(opening + self._messages(dice.choice(TURNS)))

    def _system_prompt(self) -> list[Message]:
        dice = self._dice
        chance = dice.random()
        if chance < 0.45:
            return []
        text = SYSTEM_PROMPTS[0] if chance < 0.65 else dice.choice(SYSTEM_PROMPTS)
        if dice.random() < 0.1:
            text += " " + dice.choice(SYSTEM_PROMPTS)
        return [{"role": "system", "content": text}]

    def _messages(self, turns: int) -> list[Message]:
        messages: list[Message] = []
        while turns > 0:
            for question, answer in self._turn():
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                turns -= 1
        return messages

    def _turn(self) -> list[Turn]:
        dice = self._dice
        pick = dice.choices((None, *SKILLS), weights=self._turn_weights)[0]
        if pick is None:
            return [self._fact()]
        turns = pick(dice)
        while pick is refuse and turns[0][0].lower().rstrip("?.!") in self.known:
            turns = pick(dice)
        return turns

    def _fact(self) -> Turn:
        dice = self._dice
        entry: Entry = dice.choices(self._entries, weights=self._weights)[0]
        defined = len(entry.terms) * 20
        own = entry.questions[: len(entry.questions) - defined]
        made = entry.questions[len(own) :]
        pool = own if own and dice.random() < (TYPED * len(own)) / (TYPED * len(own) + len(made) / 2) else made
        frame = 0.05 if entry in self._smalltalk else 0.22
        return vary(dice.choice(pool), dice, frame=frame), dice.choice(entry.answers)
