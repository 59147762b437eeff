"""What a server does with a request for text: checks it, makes its prompts, and hands it on."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from hotcold.actors.serve.admission import Admission
from hotcold.actors.serve.answers import Answer, ChatCompletion, Completion
from hotcold.actors.serve.bodies import Body, ChatBody, CompletionBody
from hotcold.actors.serve.errors import ApiError
from hotcold.actors.serve.generations import Asked, Generates, Item, run
from hotcold.actors.serve.reply import Reply
from hotcold.actors.serve.settings import ServeConfig
from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.text.chat import ChatTemplate


class Service:
    """What the handlers share.

    Attributes:
        is_ready: whether generations can begin, asked for each time.
        draining: no more requests are taken.
    """

    def __init__(
        self,
        engine: Generates,
        settings: ServeConfig,
        name: str,
        template: ChatTemplate | None,
        is_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self.engine, self.settings, self.name, self.template = engine, settings, name, template
        self.is_ready = is_ready
        self.draining = False
        self.admission = Admission(engine.sequences, settings.queue)
        self.created = int(time.time())
        self.max_prompt = min(settings.max_prompt or engine.context, engine.context)

    def check(self, body: Body) -> None:
        """Refuse what no engine has to look at.

        Raises:
            ApiError: it cannot be answered.
        """
        if self.draining:
            raise ApiError(
                503, "the server is shutting down", code="draining", headers={"Retry-After": "5"}
            )
        self.check_model(body.model)
        body.check()
        limit, asked = self.settings.max_tokens_limit, body.asked_tokens()
        if asked is not None and asked > limit:
            raise ApiError(
                400, f"max_tokens {asked} is more than {limit}, this server's limit", "max_tokens"
            )

    def check_model(self, name: str) -> None:
        """Refuse the name of another model.

        Raises:
            ApiError: 404.
        """
        if name != self.name:
            raise ApiError(
                404,
                f"there is no model {name[:80]!r}, only {self.name!r}",
                "model",
                "model_not_found",
            )

    async def prompt(self, make: Callable[[], list[int]], param: str) -> list[int]:
        """Token ids, made in a thread, for long texts take a while.

        Raises:
            ApiError: they cannot be used.
        """
        try:
            ids = await asyncio.to_thread(make)
        except (ConfigError, CheckpointError) as error:
            raise ApiError(400, str(error), param) from None
        if len(ids) > self.max_prompt:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens, this server takes {self.max_prompt}",
                param,
                "context_length_exceeded",
            )
        return ids

    async def completion(self, body: CompletionBody) -> Reply:
        """Answer /v1/completions."""
        self.check(body)
        text, context = self.engine.text, self.engine.context
        longer = max(context, 1 << 30)  # the length is checked here, with this server's limit
        prompts = [
            await self.prompt(lambda given=given: text.check(given, longer), "prompt")  # type: ignore[misc]
            for given in body.prompts()
        ]
        return self._reply(body, prompts, body.asked_tokens() or 16, Completion)

    async def chat(self, body: ChatBody) -> Reply:
        """Answer /v1/chat/completions."""
        self.check(body)
        template = self.template
        if template is None:
            raise ApiError(
                400,
                f"{self.name} has no chat template; use /v1/completions, or start the server with "
                "--chat-template FILE",
                code="no_chat_template",
            )
        messages = [message.plain() for message in body.messages]
        text = self.engine.text
        ids = await self.prompt(lambda: template.encode(text.tokenizer, messages), "messages")
        if not ids:
            raise ApiError(400, "the messages have no text", "messages")
        room = min(self.settings.max_tokens_limit, self.engine.context - len(ids) + 1)
        return self._reply(body, [ids], body.asked_tokens() or max(1, room), ChatCompletion)

    def _reply(
        self, body: Body, prompts: list[list[int]], max_tokens: int, kind: type[Answer]
    ) -> Reply:
        drawn = body.samplings(max_tokens)
        asked = [Asked(ids, sampling) for ids in prompts for sampling in drawn]
        if len(asked) > self.admission.most:
            raise ApiError(
                400,
                f"the request asks for {len(asked)} generations, this server takes "
                f"{self.admission.most} at a time",
                "n",
            )
        lengths, text_of = [len(ids) for ids in prompts], self.engine.text.text_of
        made = kind(self.name, lengths, len(asked), body.top_asked(), text_of)
        options = body.stream_options
        with_usage = options is not None and options.include_usage
        return Reply(self._run(asked), made, bool(body.stream), with_usage)

    async def _run(self, asked: list[Asked]) -> AsyncGenerator[tuple[int, Item], None]:
        with self.admission.line(len(asked)) as line:
            timeout_s = self.settings.request_timeout
            async with aclosing(run(self.engine, self.admission, line, asked, timeout_s)) as made:
                async for one in made:
                    yield one
