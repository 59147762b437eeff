"""An engine that counts instead of computing, for tests of a server."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from hotcold.actors.serve.chat import find_template
from hotcold.native.errors import ActorLostError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.text.generation import GenerationStats, TextCodec, Token


class Counting:
    """Two sequences; tokens come every few milliseconds. `fails_at`: the token that is lost."""

    context, sequences = 512, 2

    def __init__(self) -> None:
        bundle = resolve_model(None)
        self.text = TextCodec(bundle.path, bundle.spec)
        self.template = find_template(bundle.path, True, None)
        self.running, self.fails_at, self.pause_s = 0, -1, 0.005

    async def astream(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[list[Token] | GenerationStats, None]:
        self.running += 1
        try:
            for made in range(sampling.max_tokens):
                if made == self.fails_at:
                    raise ActorLostError("cpu", "the secret inside")
                yield [Token(5, f" {made}", -0.5)]
                await asyncio.sleep(self.pause_s)
            yield GenerationStats(len(prompt), sampling.max_tokens, 0, 0, 0, "length")
        finally:
            self.running -= 1
