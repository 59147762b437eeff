"""What is answered, as the OpenAI API has it: whole, or piece by piece as server-sent events."""

import time
import uuid
from collections.abc import Callable, Sequence
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

    `prompts`: how many tokens each has; so many `choices` in all. `top`: alternatives to tell of
    each token; None: no log probabilities. `text_of`: the text of a token id.
    """

    kind = whole = piece = ""

    def __init__(
        self,
        model: str,
        prompts: Sequence[int],
        choices: int,
        top: int | None,
        text_of: Callable[[int], str],
    ) -> None:
        self._head = {"created": int(time.time()), "model": model}
        self._id = f"{self.kind}-{uuid.uuid4().hex}"
        self._prompts, self._top, self._text_of = prompts, top, text_of
        self.choices = [Choice() for _ in range(choices)]

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self._id, "object": kind, **self._head, "choices": choices, **more}

    def _choice(
        self, index: int, content: dict[str, Any], tokens: Sequence[Token], at: int, finish: Any
    ) -> dict[str, Any]:
        logprobs = None if self._top is None else self.logprobs(tokens, at)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of the prompts and of what followed; cached: those no choice had computed."""
        stats = [one.stats for one in self.choices if one.stats is not None]
        given, made = sum(self._prompts), sum(one.new_tokens for one in stats)
        each = len(self.choices) // len(self._prompts)
        reused = [one.reused_tokens for one in stats]
        cached = sum(min(reused[at : at + each]) for at in range(0, len(reused), each))
        return {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": cached},
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
        if not text and (self._top is None or not item):
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

    def likeliest(self, token: Token) -> list[tuple[str, float]]:
        """Text and log probability of the alternatives of a token, best first."""
        own = token.text or self._text_of(token.id)
        return [(own if i == token.id else self._text_of(i), p) for i, p in token.top]


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
            "top_logprobs": [self._by_text(token) for token in tokens] if self._top else None,
            "text_offset": offsets,
        }

    def _by_text(self, token: Token) -> dict[str, float]:
        """Tokens of one text: the likeliest. The token itself is always there."""
        made: dict[str, float] = {}
        for text, logprob in [*self.likeliest(token), (token.text, token.logprob)]:
            made.setdefault(text, logprob)
        return made


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
                **_logprob(token.text, token.logprob),
                "top_logprobs": [_logprob(*one) for one in self.likeliest(token)],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
