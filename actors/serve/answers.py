"""What is answered, as the OpenAI API has it: whole, or piece by piece as server-sent events."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hotcold.actors.serve.errors import as_json
from hotcold.runtime.text.generation import GenerationStats, Token

FINISH = {"length": "length", "eos": "stop", "stop": "stop"}
DONE = "data: [DONE]\n\n"


@dataclass
class Choice:
    """One generation so far."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    stats: GenerationStats | None = None

    @property
    def finish(self) -> str | None:
        """Why it ended."""
        return None if self.stats is None else FINISH[self.stats.finish]


class Answer:
    """Makes the objects of one request.

    `with_logprobs`: those of the tokens go with the text.
    """

    kind = whole = piece = ""

    def __init__(self, model: str, prompt_tokens: int, choices: int, with_logprobs: bool) -> None:
        self._head = {"created": int(time.time()), "model": model}
        self._id = f"{self.kind}-{uuid.uuid4().hex}"
        self._prompt_tokens, self._with_logprobs = prompt_tokens, with_logprobs
        self.choices = [Choice() for _ in range(choices)]

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self._id, "object": kind, **self._head, "choices": choices, **more}

    def _choice(
        self, index: int, content: dict[str, Any], tokens: Sequence[Token], at: int, finish: Any
    ) -> dict[str, Any]:
        logprobs = self.logprobs(tokens, at) if self._with_logprobs else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompts and of what followed."""
        made = sum(one.stats.new_tokens for one in self.choices if one.stats is not None)
        given = self._prompt_tokens
        return {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
        }

    def all(self) -> dict[str, Any]:
        """The whole answer, once all choices have ended."""
        made = [
            self._choice(index, self.content(one.text), one.tokens, 0, one.finish)
            for index, one in enumerate(self.choices)
        ]
        return self._object(self.whole, made, usage=self.usage)

    def event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        """A server-sent event."""
        return f"data: {as_json(self._object(self.piece, choices, **more))}\n\n"

    def begin(self, with_usage: bool) -> str:
        """What a stream begins with."""
        return ""

    def take(self, index: int, item: list[Token] | GenerationStats) -> dict[str, Any] | None:
        """Add tokens or figures to a choice; the piece that a stream then says, if any."""
        choice = self.choices[index]
        if isinstance(item, GenerationStats):
            choice.stats = item
            return self._choice(index, self.delta(""), [], len(choice.text), choice.finish)
        text, at = "".join(token.text for token in item), len(choice.text)
        choice.text += text
        choice.tokens += item
        if not text and not (self._with_logprobs and item):
            return None
        return self._choice(index, self.delta(text), item, at, None)

    def content(self, text: str) -> dict[str, Any]:
        """A choice's text."""
        return {"text": text}

    def delta(self, text: str) -> dict[str, Any]:
        """A piece of it."""
        return {"text": text}

    def logprobs(self, tokens: Sequence[Token], at: int) -> dict[str, Any]:
        """Of tokens whose text begins at character `at`."""
        raise NotImplementedError


class Completion(Answer):
    """To /v1/completions."""

    kind, whole, piece = "cmpl", "text_completion", "text_completion"

    def logprobs(self, tokens: Sequence[Token], at: int) -> dict[str, Any]:
        """Lists over the tokens."""
        offsets = []
        for token in tokens:
            offsets.append(at)
            at += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": None,
            "text_offset": offsets,
        }


class ChatCompletion(Answer):
    """To /v1/chat/completions."""

    kind, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def begin(self, with_usage: bool) -> str:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        more = {"usage": None} if with_usage else {}
        empty = {"delta": delta, "logprobs": None, "finish_reason": None}
        return self.event([{"index": i, **empty} for i in range(len(self.choices))], **more)

    def content(self, text: str) -> dict[str, Any]:
        """A message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str) -> dict[str, Any]:
        """What is added to it."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, tokens: Sequence[Token], at: int) -> dict[str, Any]:
        """An object a token."""
        content = [
            {
                "token": token.text,
                "logprob": token.logprob,
                "bytes": list(token.text.encode("utf-8", "replace")),
                "top_logprobs": [],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}
