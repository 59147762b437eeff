"""What clients send, field by field, as the OpenAI API has it; an unknown field is refused.

Fields that would change the text and that the engine cannot honour are refused unless they are
neutral; those that only label a request are taken and ignored.
"""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hotcold.actors.serve.errors import ApiError
from hotcold.native.abi.generated import MAX_TOP
from hotcold.native.options.table import MAX_SEED
from hotcold.runtime.options.config import Sampling

Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Neutral = Literal[0] | None
MOST_CHOICES = 128
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
Prompts = Annotated[list[Ids], Field(min_length=1, max_length=MOST_CHOICES)]


class StreamOptions(BaseModel):
    """What a stream says beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Body(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    max_tokens: int | None = Field(None, ge=1, description="New tokens, at most.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="1.")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1 << 30, description="Of hotcold; 0: all.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Choices; i draws by seed + i.")
    seed: int | None = Field(
        None, ge=-(1 << 63), le=MAX_SEED, description="Same seed, same text; else drawn by lot."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    ignore_eos: bool | None = Field(None, description="Of hotcold: go on after the end of text.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Neutral = Field(None, description="Not supported but for 0.")
    frequency_penalty: Neutral = Field(None, description="Not supported but for 0.")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = Field(None, description="Ignored.")
    metadata: dict[str, str] | None = Field(None, description="Ignored.")
    service_tier: str | None = Field(None, description="Ignored.")
    store: bool | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored.")

    def asked_tokens(self) -> int | None:
        """New tokens asked for."""
        return self.max_tokens

    def top_asked(self) -> int | None:
        """Alternatives to tell of each token; None: no log probabilities at all."""
        raise NotImplementedError

    def samplings(self, max_tokens: int) -> list[Sampling]:
        """How each choice is drawn."""
        seed = secrets.randbits(64) if self.seed is None else self.seed
        stop = self.stop or ()
        return [
            Sampling(
                max_tokens=max_tokens,
                temperature=1.0 if self.temperature is None else float(self.temperature),
                top_k=self.top_k or 0,
                top_p=1.0 if self.top_p is None else float(self.top_p),
                seed=(seed + choice) & MAX_SEED,
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                ignore_eos=bool(self.ignore_eos),
                logprobs=self.top_asked() or 0,
            )
            for choice in range(self.n or 1)
        ]

    def check(self) -> None:
        """Refuse fields that exclude each other.

        Raises:
            ApiError: 400.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is for stream: true alone", "stream_options")


class CompletionBody(Body):
    """A request for completions of texts or token ids."""

    prompt: str | Ids | Texts | Prompts
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Of each token, and of so many of the likeliest beside it."
    )
    echo: Literal[False] | None = Field(None, description="Not supported but for false.")
    suffix: Literal[""] | None = Field(None, description="Not supported.")
    best_of: Literal[1] | None = Field(None, description="Not supported but for 1.")

    def top_asked(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each of them."""
        given: Any = self.prompt
        return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"] = Field(description="This model reads text alone.")
    text: str


class Message(BaseModel):
    """What one side said."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = Field(None, description="Ignored.")
    refusal: None = None

    def plain(self) -> dict[str, str]:
        """As templates take it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class TextFormat(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


class ChatBody(Body):
    """A request for the next message of a chat."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: int | None = Field(None, ge=1, description="The name of now.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP, description="The likeliest tokens, with logprobs: true."
    )
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(
        None, description="Not supported."
    )
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Ignored.")

    def asked_tokens(self) -> int | None:
        """By its new name, else by its old one."""
        return self.max_completion_tokens or self.max_tokens

    def top_asked(self) -> int | None:
        """As `logprobs` and `top_logprobs` say."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """Likewise."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")


class EmbeddingsBody(BaseModel):
    """Whatever it asks for is refused."""

    model_config = ConfigDict(extra="allow")
