"""What `hotcold evaluate` prints: every kind of result, as text and under its JSON keys."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hotcold.actors.cli.common import output

if TYPE_CHECKING:
    from hotcold.runtime.offline.evaluation.audit_trials import AuditTrials
    from hotcold.runtime.offline.evaluation.evaluate import Evaluation
    from hotcold.runtime.offline.evaluation.sweep import Curves


def as_json_keys(result: "Evaluation") -> dict[str, Any]:
    """The evaluation under its public keys."""
    return {
        "tokens": result.tokens,
        "predictor": result.predictor,
        "perplexity": result.perplexity,
        "perplexity_dense": result.perplexity_dense,
        "perplexity_ratio": result.ratio,
        "agreement": result.agreement,
        "kl_nats": result.kl,
        "recall": result.audit.recall,
        "recall_standard_error": result.recall_standard_error,
        "precision": result.audit.precision,
        "density": result.audit.density,
        "density_fired": result.audit.fired / max(1, result.audit.total),
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "bytes_per_token": result.bytes_per_token,
        "predict_time_share": result.predict_share,
        "ffn_bytes_per_token": result.ffn_bytes.to_json(),
    }


def summary(result: "Evaluation") -> str:
    """The evaluation for people."""
    error = result.recall_standard_error
    spread = f" +- {100 * error:.2f}" if math.isfinite(error) else ""
    speed = (
        f"decode      {result.decode_tokens_per_s:.1f} tokens/s, "
        f"{result.bytes_per_token / 1e6:.1f} MB a token, prediction "
        f"{output.percent(result.predict_share)} of the time"
    )
    return "\n".join(
        [
            f"predictor   {result.predictor}",
            f"perplexity  {result.perplexity:.3f}, dense {result.perplexity_dense:.3f}: "
            f"{result.ratio:.4f}x over {output.count(result.tokens)} tokens",
            f"next token  {output.percent(result.agreement)} as the dense model, "
            f"KL {result.kl:.4f} nats",
            f"recall      {100 * result.audit.recall:.2f}{spread} %, precision "
            f"{output.percent(result.audit.precision)}",
            f"density     {output.percent(result.audit.density)} proposed, "
            f"{output.percent(result.audit.fired / max(1, result.audit.total))} fired",
            *([speed] if math.isfinite(result.decode_tokens_per_s) else []),
            f"feed-forward weights a token  {result.ffn_bytes}",
        ]
    )


def ranking_summary(runs: Sequence[tuple[str, "Evaluation"]]) -> str:
    """Named evaluations of one model as a table."""
    columns = ("predictor", "recall", "precision", "density", "MB/token", "tokens/s", "perplexity")
    some = runs[0][1]
    fired = output.percent(some.audit.fired / max(1, some.audit.total))
    return "\n".join(
        [
            output.table(columns, [(name, *_row(result)) for name, result in runs]),
            f"over {output.count(some.tokens)} tokens; {fired} of neurons fire;"
            f" perplexity as a multiple of the dense model's {some.perplexity_dense:.3f}",
        ]
    )


def _row(result: "Evaluation") -> tuple[str, ...]:
    shares = (result.audit.recall, result.audit.precision, result.audit.density)
    measured = math.isfinite(result.decode_tokens_per_s)
    return (
        *(output.percent(share) for share in shares),
        f"{result.bytes_per_token / 1e6:.2f}" if measured else "-",
        f"{result.decode_tokens_per_s:.0f}" if measured else "-",
        f"{result.ratio:.4f}",
    )


def rank(result: "Evaluation", sort: str) -> float:
    """Ascending, the best first; what was not measured comes after what was."""
    value = {
        "speed": -result.decode_tokens_per_s,
        "bytes": result.bytes_per_token,
        "recall": -result.audit.recall,
        "density": result.audit.density,
        "perplexity": result.ratio,
    }[sort]
    return value if math.isfinite(value) else math.inf


def curves_json(curves: "Curves", share: float) -> dict[str, Any]:
    """The curves under their public keys."""
    return {
        "tokens": curves.tokens,
        "perplexity_dense": curves.perplexity_dense,
        "parameter_share": share,
        "ffn_bytes_per_token_exact": curves.exact_bytes,
        "points": [
            {
                "predictor": point.kind,
                "setting": point.setting,
                "recall": point.audit.recall,
                "precision": point.audit.precision,
                "density": point.audit.density,
                "perplexity_ratio": point.ratio,
                "ffn_bytes_per_token": point.gate_first_bytes,
                "predictor_bytes": point.predictor_bytes,
            }
            for point in curves.points
        ],
        "density_at_recall_95": {
            kind: curves.density_at(kind, 0.95) for kind in ("learned", "low-rank")
        },
    }


def curves_summary(curves: "Curves", share: float) -> str:
    """The curves as a table, and how much density training saves."""
    heads = ("predictor", "setting", "recall", "density", "precision", "perplexity", "MB a token")
    rows = [
        (
            point.kind,
            point.setting,
            *(
                f"{value:.4f}"
                for value in (point.audit.recall, point.audit.density, point.audit.precision)
            ),
            f"{point.ratio:.4f}x",
            f"{point.gate_first_bytes / 1e6:.2f}",
        )
        for point in curves.points
    ]
    lines = [
        output.table(heads, rows),
        f"{output.count(curves.tokens)} tokens, dense perplexity {curves.perplexity_dense:.3f}; "
        f"feed-forward weights of exact {curves.exact_bytes / 1e6:.2f} MB a token",
        f"predictors: {output.percent(share)} of the model's parameters",
    ]
    own, other = curves.density_at("learned", 0.95), curves.density_at("low-rank", 0.95)
    if own is not None and other is not None:
        lines.append(
            f"at recall 95 %: learned proposes {output.percent(own)}, low-rank of the same bytes "
            f"{output.percent(other)}: {output.percent(1 - own / other)} less"
        )
    return "\n".join(lines)


def trials_summary(trials: "AuditTrials") -> str:
    """What the trials say, for people."""
    return "\n".join(
        [
            f"audit     1 in {trials.every}, {trials.tokens} tokens, true recall "
            f"{100 * trials.recall:.2f} %",
            f"coverage  {trials.covered} of {trials.runs} intervals contain it",
            f"interval  +- {100 * trials.half_width:.2f} points, at most "
            f"{100 * trials.half_width_max:.2f}",
            f"cost      {100 * trials.busy_share:.2f} % of a token's time in both executors; "
            f"tokens/s {-100 * trials.speed_loss:+.1f} +- {100 * trials.speed_loss_error:.1f} %",
            f"outputs   {trials.unchanged} of {trials.runs} bit-identical without an audit",
        ]
    )


def tasks_summary(results: dict[str, dict[str, float]]) -> str:
    """Metrics of the harness's tasks, standard errors beside them."""
    rows = []
    for task, metrics in results.items():
        for name, value in metrics.items():
            if name.endswith("_stderr") or name == "sample_len":
                continue
            error = metrics.get(f"{name}_stderr")
            rows.append((task, name, f"{value:.4f}", "" if error is None else f"{error:.4f}"))
    return output.table(("task", "metric", "value", "standard error"), rows)
