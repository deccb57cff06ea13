"""Reasoning that a model writes in front of its answer, between `<think>` and `</think>`, told apart as it comes."""

from typing import Final

BEGIN: Final = "<think>"
END: Final = "</think>"


def reasons(template: str) -> bool:
    """Tell whether a chat template knows reasoning."""
    return END in template or BEGIN in template


class ReasoningStream:
    """Splits the text of one choice into reasoning and answer; where it is cut into parts never matters."""

    # Invariant: `_held` could become a mark, or is whitespace that borders on one.

    def __init__(self, *, inside: bool) -> None:
        """`inside`: the prompt itself has opened the reasoning."""
        self.inside = inside
        self._begun = inside  # whether it is decided that there is reasoning, or none
        self._held = ""
        self._fresh = True  # nothing of the present part was said: its leading whitespace is not

    def push(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the answer that `text` settles."""
        self._held += text
        if not self._begun and not self._decide():
            return "", ""
        if not self.inside:
            return "", self._take_answer()
        at = self._held.find(END)
        if at < 0:
            keep = next((n for n in range(len(END) - 1, 0, -1) if self._held.endswith(END[:n])), 0)
            return self._take_reasoning(len(self._held) - keep, strip_end=False), ""
        reasoning = self._take_reasoning(at, strip_end=True)
        self._held = self._held.lstrip()[len(END) :]
        self.inside, self._fresh = False, True
        return reasoning, self._take_answer()

    def finish(self) -> tuple[str, str]:
        """Return what was held back."""
        held, self._held = self._held, ""
        return (held, "") if self.inside else ("", held)

    def _decide(self) -> bool:
        start = self._held.lstrip()
        if start.startswith(BEGIN):
            self._held, self.inside = start[len(BEGIN) :], True
        elif BEGIN.startswith(start):
            return False
        else:
            self._fresh = False  # an answer without reasoning keeps its whitespace
        self._begun = True
        return True

    def _take_reasoning(self, end: int, *, strip_end: bool) -> str:
        part, rest = self._held[:end], self._held[end:]
        if self._fresh:
            part = part.lstrip()
            self._fresh = not part
        trimmed = part.rstrip()  # whitespace before the end mark is not reasoning
        self._held = rest if strip_end else part[len(trimmed) :] + rest
        return trimmed

    def _take_answer(self) -> str:
        part, self._held = self._held, ""
        if self._fresh:
            part = part.lstrip()
            self._fresh = not part
        return part
