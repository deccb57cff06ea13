"""From messages to the exact token ids of the prompt; nothing that a user writes becomes a special token.

The template's pieces are tokenised with special tokens and kept (they are few), contents without. Two figures are
measured at load for the API's bound: bytes(text) + template_tokens + messages * message_tokens >= tokens of the prompt.
"""

import itertools
from collections.abc import Sequence
from typing import Final

from shared.errors import InvalidRequest
from shared.wire import PLAIN_CHAT, Message, Task
from workers.engines.base import Engine
from workers.inference.conversation import text_bytes
from workers.inference.reasoning import reasons
from workers.inference.template import PLAIN_WORDS, ROLES, ChatTemplate, Piece
from workers.inference.tool_calls import ToolForm, form_of

KEPT_PIECES_MOST: Final = 4096  # distinct template pieces whose ids are kept
KEPT_CHARACTERS_MOST: Final = 4096  # of one piece: those with a client's tools are longer
LITTLE_TOO_LONG: Final = 2  # contexts that a prompt may take before the rest of it is not looked at
PROBE_MESSAGES_MOST: Final = 3
PROBE_BYTES: Final = ("x", "1", "?", "\n", " ")


class PromptBuilder:
    """Builds the prompts of one loaded model; safe to call from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._tokenizer = engine.tokenizer
        self._context = engine.context
        self._prefix = engine.prompt_prefix_ids
        self.template: Final = ChatTemplate(engine.chat_template, engine.template_variables, is_text=self._is_text)
        self.tool_form: Final[ToolForm | None] = form_of(engine.chat_template) if self.template.takes_tools else None
        self.reasons: Final = reasons(engine.chat_template)
        self._kept: dict[str, list[int]] = {}
        self.template_tokens, self.message_tokens = self._measure()

    def build(self, messages: Sequence[Message], task: Task = PLAIN_CHAT) -> list[int]:
        """Return the ids of the prompt, (prompt_tokens,).

        Raises InvalidRequest where the template does not take the messages, or, code context_length_exceeded, where
        they cannot fit however well they compress; a prompt that is only a little too long is the caller's to refuse.
        """
        self._check_bytes(text_bytes(messages, task.tool_use), "messages")
        return self._ids(self.template.render(messages, task))

    def build_bare(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the ids of a prompt without a template: a text behind the model's own prefix, or the ids as given."""
        if not isinstance(prompt, str):
            return list(prompt)
        self._check_bytes(len(prompt.encode()), "prompt")
        return [*self._prefix, *self._tokenizer.encode(prompt, special=False)]

    def text_of(self, prompt: str | Sequence[int]) -> str:
        """Return the text of a bare prompt."""
        if isinstance(prompt, str):
            return prompt
        return b"".join(map(self._tokenizer.token_bytes, prompt)).decode(errors="replace")

    def _check_bytes(self, content_bytes: int, param: str) -> None:
        tokens_least = content_bytes // self._tokenizer.longest_token_bytes
        if tokens_least > self._context:
            raise self._too_long(tokens_least, param)

    def _too_long(self, tokens_least: int, param: str) -> InvalidRequest:
        return InvalidRequest(
            f"This model's maximum context length is {self._context} tokens. However, your {param} hold at least "
            f"{tokens_least} tokens. Please reduce the length of the {param}.",
            code="context_length_exceeded",
            param=param,
        )

    def _is_text(self, text: str) -> bool:
        return self._tokenizer.encode(text, special=True) == self._tokenizer.encode(text, special=False)

    def _ids(self, pieces: Sequence[Piece]) -> list[int]:
        ids: list[int] = []
        for text, from_user in pieces:
            ids += self._tokenizer.encode(text, special=False) if from_user else self._template_ids(text)
            if len(ids) > LITTLE_TOO_LONG * self._context:
                raise self._too_long(len(ids), "messages")
        prefix = list(self._prefix)
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def _template_ids(self, text: str) -> list[int]:
        ids = self._kept.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, special=True)
            if len(self._kept) < KEPT_PIECES_MOST and len(text) <= KEPT_CHARACTERS_MOST:
                self._kept[text] = ids
        return ids

    def _measure(self) -> tuple[int, int]:
        """Return what the template adds to a conversation and to each of its messages, at most, over role orders."""
        overheads: dict[int, int] = {0: 0}
        for count in range(1, PROBE_MESSAGES_MOST + 1):
            found = [self._overhead(roles) for roles in itertools.product(ROLES, repeat=count)]
            overheads[count] = max(found)
        message_tokens = max(overheads[count + 1] - overheads[count] for count in range(1, PROBE_MESSAGES_MOST))
        message_tokens = max(1, message_tokens) + self._beyond_bytes()
        template_tokens = max(overheads[count] - count * message_tokens for count in overheads if count)
        return max(0, template_tokens), message_tokens

    def _beyond_bytes(self) -> int:
        """Return how many tokens a content may have beyond its bytes: SentencePiece puts a space before it."""
        return max(0, *(len(self._tokenizer.encode(byte, special=False)) - 1 for byte in PROBE_BYTES))

    def _overhead(self, roles: Sequence[str]) -> int:
        """Return the tokens of a prompt beyond those of its contents; 0 where the template refuses the roles."""
        try:
            ids = self.build([Message(role, PLAIN_WORDS) for role in roles])
        except InvalidRequest:
            return 0
        contents = self._tokenizer.encode(PLAIN_WORDS, special=False)
        return len(ids) - len(roles) * len(contents)
