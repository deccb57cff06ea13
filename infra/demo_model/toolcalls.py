"""Conversations with tools: known ones, and invented ones so that the model copies names instead of learning them."""

import json
import random
from dataclasses import dataclass
from typing import Any, Final

from .chat import Message, Tool
from .phrasing import invent_word
from .refusals import PLACES, TOPICS
from .skills import NAMES, WORDS

VERBS: Final = ("get", "find", "search", "lookup", "fetch", "read", "list", "check", "create", "send", "open", "run",
                "start", "stop", "play", "set", "show", "translate", "convert", "delete")  # fmt: skip
PARAMETERS: Final = ("city", "name", "query", "text", "title", "topic", "user", "file", "item", "word", "id", "place",
                     "location", "country", "symbol", "key", "value", "path", "url", "language")  # fmt: skip


@dataclass(frozen=True)
class ToolUse:
    """A tool, a user's wish that needs it, the call, the tool's result and what the model says about it."""

    tool: Tool
    wish: str
    name: str
    arguments: dict[str, Any]
    result: str
    answer: str


def describe(name: str, description: str, types: dict[str, str], dice: random.Random) -> Tool:
    """A function tool in OpenAI's form; optional fields are there or not, as users send them."""
    properties: dict[str, Any] = {}
    for parameter, kind in types.items():
        properties[parameter] = {"type": kind}
        if dice.random() < 0.4:
            properties[parameter]["description"] = f"The {parameter}"
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if dice.random() < 0.75:
        schema["required"] = list(types)
    function: dict[str, Any] = {"name": name}
    if dice.random() < 0.9:
        function["description"] = description
    return {"type": "function", "function": function | {"parameters": schema}}


def weather(dice: random.Random) -> ToolUse:
    """The example that everybody tries."""
    place = dice.choice(PLACES) if dice.random() < 0.75 else invent_word(dice).capitalize()
    name = dice.choice(("get_weather", "get_weather", "get_current_weather", "weather"))
    parameter = dice.choice(("city", "city", "location"))
    wish = dice.choice(("What is the weather in {0}?", "What's the weather like in {0}?", "How is the weather in {0}?",
                        "Weather in {0}?", "Will it rain in {0}?", "Is it warm in {0}?",
                        "What is the weather like in {0} today?", "Tell me the weather in {0}."))  # fmt: skip
    degrees = str(dice.randrange(-9, 40))
    sky = dice.choice(("sunny", "cloudy", "rainy", "windy", "snowy", "clear", "foggy"))
    facts = {"temperature": int(degrees), "condition": sky}
    result, answer = dice.choice((
        (json.dumps(facts), f"It is {sky} in {place}, with {degrees} degrees."),
        (f"{sky}, {degrees} degrees", f"It is {sky} in {place}, with {degrees} degrees."),
        (f"{degrees} C and {sky}", f"It is {sky} in {place}, with {degrees} degrees."),
        (json.dumps({parameter: place} | facts), f"It is {sky} in {place}, with {degrees} degrees."),
        (sky, f"It is {sky} in {place}."),
    ))  # fmt: skip
    tool = describe(name, dice.choice(("Get the weather in a city", "Get the current weather", "Weather for a place")),
                    {parameter: "string"}, dice)  # fmt: skip
    return ToolUse(tool, wish.format(place), name, {parameter: place}, result, answer)


def clock(dice: random.Random) -> ToolUse:
    """A tool without arguments, or with a place."""
    hour, minute = dice.randrange(24), dice.randrange(60)
    time = f"{hour:02}:{minute:02}"
    if dice.random() < 0.5:
        name = dice.choice(("get_time", "get_current_time", "clock"))
        tool = describe(name, "Get the current time", {}, dice)
        wish = dice.choice(
            ("What time is it?", "Tell me the time.", "What's the time?", "Do you know what time it is?")
        )
        return ToolUse(tool, wish, name, {}, dice.choice((time, json.dumps({"time": time}))), f"It is {time}.")
    place = dice.choice(PLACES)
    tool = describe("get_time", "Get the time in a city", {"city": "string"}, dice)
    wish = dice.choice(("What time is it in {0}?", "Tell me the time in {0}.", "Time in {0}?")).format(place)
    return ToolUse(tool, wish, "get_time", {"city": place}, time, f"It is {time} in {place}.")


def calculator(dice: random.Random) -> ToolUse:
    """Two numbers copied into arguments, the result copied out."""
    a, b = dice.randrange(0, 1000), dice.randrange(0, 1000)
    name, word, sign, result = dice.choice((
        ("add", "plus", "+", a + b), ("multiply", "times", "*", a * b), ("subtract", "minus", "-", a - b),
    ))  # fmt: skip
    wish = dice.choice((f"What is {a} {word} {b}?", f"What is {a} {sign} {b}?", f"Calculate {a} {sign} {b}.",
                        f"{a} {sign} {b}", f"How much is {a} {word} {b}?"))  # fmt: skip
    kind = dice.choice(("number", "integer"))
    tool = describe(name, f"{name.capitalize()} two numbers", {"a": kind, "b": kind}, dice)
    returned = dice.choice((str(result), json.dumps({"result": result})))
    return ToolUse(tool, wish, name, {"a": a, "b": b}, returned, f"{a} {word} {b} is {result}.")


def credits(dice: random.Random) -> ToolUse:
    """A tool of this product."""
    amount = f"{dice.randrange(0, 500)}.{dice.randrange(0, 100):02}"
    name = dice.choice(("get_balance", "get_credits"))
    tool = describe(name, "Get the credit balance of the account", {}, dice)
    wish = dice.choice(("What is my balance?", "How many credits do I have?", "Show my balance.", "How much is left?"))
    returned = dice.choice((amount, json.dumps({"balance": amount})))
    return ToolUse(tool, wish, name, {}, returned, f"Your balance is {amount} credits.")


def search(dice: random.Random) -> ToolUse:
    """Look something up in text."""
    topic = dice.choice(TOPICS) if dice.random() < 0.8 else invent_word(dice)
    name = dice.choice(("search", "web_search", "search_docs", "lookup"))
    tool = describe(name, dice.choice(("Search the web", "Search the documents")), {"query": "string"}, dice)
    wish = dice.choice(("Search for {0}.", "Look up {0}.", "Find something about {0}.", "What is {0}?", "Search {0}"))
    found = " ".join(dice.choice(WORDS) for _ in range(dice.randrange(1, 7)))
    return ToolUse(tool, wish.format(topic), name, {"query": topic}, found, f"The tool says: {found}")


def invented(dice: random.Random) -> ToolUse:
    """A tool that nobody knows, with one or two arguments: all must be copied from the prompt."""
    noun = invent_word(dice) if dice.random() < 0.3 else dice.choice(WORDS)
    verb = dice.choice(VERBS)
    name = dice.choice((f"{verb}_{noun}", f"{verb}_{noun}", noun, f"{verb}{noun.capitalize()}"))
    names = dice.sample(PARAMETERS, dice.choice((1, 1, 1, 2)))
    if dice.random() < 0.2:
        names[0] = invent_word(dice)
    values: dict[str, Any] = {parameter: _value(dice) for parameter in names}
    kinds = {key: "string" if isinstance(value, str) else "integer" for key, value in values.items()}
    tool = describe(name, f"{verb.capitalize()} the {noun}", kinds, dice)
    listed = " and ".join(f"{key} {value}" for key, value in values.items())
    wish = dice.choice((f"{verb.capitalize()} the {noun} with {listed}.", f"Use {name} with {listed}.",
                        f"Call {name} with {listed}.", f"Please {verb} the {noun} for {listed}.",
                        f"Use the {name} tool with {listed}."))  # fmt: skip
    if len(values) == 1 and dice.random() < 0.5:
        value = next(iter(values.values()))
        wish = dice.choice((f"{verb.capitalize()} the {noun} for {value}.", f"Call {name} with {value}.",
                            f"{verb.capitalize()} {noun} {value}"))  # fmt: skip
    result = dice.choice(("ok", "done", str(_value(dice)), json.dumps({noun: _value(dice)}), f"{_value(dice)} found"))
    return ToolUse(tool, wish, name, values, result, f"The tool says: {result}")


USES: Final = (weather, weather, weather, clock, calculator, credits, search, invented, invented, invented)


def offer_tools(dice: random.Random) -> tuple[list[Message], list[Tool]]:
    """Messages of a chat with tools that ends with an answer: a call alone, or a call, its result and the reply."""
    uses = [dice.choice(USES)(dice) for _ in range(dice.choice((1, 1, 1, 2, 2, 3)))]
    chosen = dice.choice(uses)
    tools = list({use.tool["function"]["name"]: use.tool for use in uses if use.name != chosen.name}.values())
    tools.insert(dice.randrange(len(tools) + 1), chosen.tool)
    messages: list[Message] = [{"role": "user", "content": chosen.wish}]
    calls = [_call(chosen)]
    messages.append({"role": "assistant", "content": None, "tool_calls": calls})
    if dice.random() < 0.6:
        messages.append({"role": "tool", "content": chosen.result})
        messages.append({"role": "assistant", "content": chosen.answer})
    return messages, tools


def _call(use: ToolUse) -> dict[str, Any]:
    return {"type": "function", "function": {"name": use.name, "arguments": use.arguments}}


def _value(dice: random.Random) -> str | int:
    kind = dice.randrange(8)
    if kind == 0:
        return dice.randrange(0, 10_000)
    if kind == 1:
        return invent_word(dice)
    return dice.choice((dice.choice(NAMES), dice.choice(PLACES), dice.choice(WORDS)))
