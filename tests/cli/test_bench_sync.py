"""`hotcold bench sync` on the command line."""

from support.command import Run, only_line

from hotcold.actors.cli.bench.bench_sync import sync_lines

PLAN = {
    "layers": 4,
    "quiet_layers": 2,
    "quiet_firing": 0.0008,
    "quiet_resident": 0.96,
    "layers_with_exchange": 3,
    "expected_skipped_per_token": 1.5,
    "fewest_cold_active": 0.5,
}


def test_the_embedded_model_has_no_quiet_layer(run: Run) -> None:
    ended = run("bench", "sync")
    assert ended.code == 2
    assert "no layer of this model is quiet" in only_line(ended.err)


def test_it_says_what_each_exchange_is_worth_and_when_none_was_left_out() -> None:
    big = {**PLAN, "expected_skipped_per_token": 0.0, "fewest_cold_active": 243.2}
    result = {
        "paper": {"pass_us": 100.0, "skipped_per_token": 0.0},
        "selective": {"pass_us": 88.0, "skipped_per_token": 1.5},
        "saved_us_each": 8.0,
        "plan": PLAN,
        "llama2-13b": big,
    }
    text = "\n".join(sync_lines(result))
    assert "8.00 us saved by each" in text
    assert "243 cold neurons" in text
    assert "0.080%" in text and "96.0%" in text
    none = "\n".join(sync_lines({**result, "saved_us_each": None}))
    assert "none was left out" in none
    assert "did not get shorter" in "\n".join(sync_lines({**result, "saved_us_each": -3.0}))
