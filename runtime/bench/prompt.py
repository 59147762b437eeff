"""Prompt speed on a GPU: both forms of a prompt by its length, and the measured switch point.

`hotcold bench prompt --model DIR --vram 10GiB` runs it. Both forms are run here; an engine with
`--prompt-form auto` chooses by the same times.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prompt import NEVER, Switch
from hotcold.runtime.engine.request import make_request

REPEAT = 2


def measure(local: LocalSession, lengths: Sequence[int]) -> dict[str, Any]:
    """Prompt tokens/s of both forms, the better of two runs, and from which length dense is faster.

    The session is on a GPU and its deployment has a dense form; lengths are tokens.
    """
    gpu, context = local.leader, local.deployment.context
    choice = local.deployment.gpu
    if choice is None or not choice.prompt_rows:
        return {}
    vocab, block = local.deployment.spec.vocab_size, local.deployment.layout.max_batch
    rows = choice.prompt_rows
    ids = np.random.default_rng(0).integers(3, vocab, min(context, max(lengths))).tolist()
    request = make_request(ids, None, context)

    def seconds(tokens: int, dense: int) -> float:
        return min(gpu.prompt_seconds(request, tokens, dense) for _ in range(REPEAT))

    result: dict[str, Any] = {"rows": rows, "block": block, "sparse": {}, "dense": {}}
    for n in sorted({min(n, len(ids)) for n in lengths}):
        result["sparse"][str(n)] = round(n / seconds(n, 0), 1)
        result["dense"][str(n)] = round(n / seconds(n, n), 1)
    most = min(rows, len(ids))
    switch = Switch.measured(seconds(min(block, most), 0), seconds(most, most), block, rows)
    streamed = float((local.deployment.plan.device_LN != 0).sum(axis=1).sum())
    streamed *= float(local.deployment.plan.neuron_bytes_L[0])
    return result | {
        "switch_tokens": None if switch.tokens >= NEVER else switch.tokens,
        "sparse_block_ms": round(switch.sparse_s * 1e3, 2),
        "dense_pass_ms": round(switch.dense_s * 1e3, 2),
        "streamed_gb": round(streamed * 1e-9, 3),
        "streamed_gb_per_s": round(streamed * 1e-9 / switch.dense_s, 1),
    }
