"""From token ids to text that may be sent: nothing leaves that a later token could still change.

    ids -> bytes -> characters (UTF-8 hold-back) -> text (stop-string hold-back)

A stop string never leaks in part and never swallows text before it; where the ids are cut into deltas never matters.
The stop string that is complete first wins, the longest of them where several end together.
"""

import codecs
from collections.abc import Sequence

from workers.engines.base import Tokenizer


class TextStream:
    """The text of one choice, as its tokens come."""

    # Invariant: `_partial` is an incomplete UTF-8 character, `_held` the longest tail of the text that could become a
    # stop string, `_owed` text that a replay found decoded but not sent.

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._stops = StopStrings(stops) if stops else None
        self._partial = b""
        self._held = ""
        self._owed = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; the text ends before it."""
        return self._stopped

    def push(self, token_ids: Sequence[int], text: bytes | None = None) -> str:
        """Return the new text that is safe to send; `text` stands in for the tokens' own bytes where given."""
        if text is None:
            token_bytes = self._token_bytes
            text = token_bytes(token_ids[0]) if len(token_ids) == 1 else b"".join(map(token_bytes, token_ids))
        if self._stops is None and not self._partial and not self._owed and text.isascii():
            return text.decode("ascii")
        return self._take_owed() + self._filter(self._decode(text, final=False))

    def finish(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD. Again: nothing."""
        rest = self._take_owed() + self._filter(self._decode(b"", final=True))
        if not self._stopped:
            rest += self._held
        self._held = ""
        return rest

    def replay(self, token_ids: Sequence[int], emitted_text: str) -> None:
        """Take over where an earlier attempt that logged `token_ids` and sent `emitted_text` stood.

        What it should have sent and did not comes with the next push or finish. A text that is not the tokens' own
        (the simulator's stamps) leaves nothing to take over.
        """
        sent = self.push(token_ids)
        whole = sent + self._held
        if sent.startswith(emitted_text):
            self._owed = sent[len(emitted_text) :]
        elif whole.startswith(emitted_text):
            self._held = whole[len(emitted_text) :]
        else:
            self._partial, self._held, self._stopped = b"", "", False

    def _take_owed(self) -> str:
        owed, self._owed = self._owed, ""
        return owed

    def _decode(self, data: bytes, *, final: bool) -> str:
        data = self._partial + data
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._partial = data[used:]
        return text

    def _filter(self, text: str) -> str:
        if self._stops is None or self._stopped:
            return "" if self._stopped else text
        window = self._held + text
        stop = self._stops.find(window)
        if stop >= 0:
            self._stopped, self._held = True, ""
            return window[:stop]
        safe = len(window) - self._stops.open_tail(window)
        self._held = window[safe:]
        return window[:safe]


class StopStrings:
    """Where stop strings are, or begin, in a text."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would stop before the first character"
        self._stops = tuple(stops)

    def find(self, text: str) -> int:
        """Return where the stop string that is complete first begins; -1 without one."""
        begin, end = -1, len(text) + 1
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0 and (at + len(stop), at) < (end, begin):
                begin, end = at, at + len(stop)
        return begin

    def open_tail(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while at >= 0 and len(text) - at > longest:
                if stop.startswith(text[at:]):
                    longest = len(text) - at
                    break
                at = text.find(stop[0], at + 1)
        return longest
