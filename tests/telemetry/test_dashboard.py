"""The Grafana dashboard asks for what the engine exports, and for all of it."""

import json
import re
from importlib.resources import files

from hotcold.actors.telemetry.metrics import ACTOR_COUNTERS, COUNTERS, GAUGES, HISTOGRAMS


def test_the_dashboard_and_the_metrics_agree() -> None:
    text = (files("hotcold.actors.telemetry") / "grafana.json").read_text()
    asked = set(re.findall(r"ray_(hotcold_\w+)", text))
    exported = {*GAUGES, *COUNTERS, *ACTOR_COUNTERS, *(f"{name}_bucket" for name in HISTOGRAMS)}
    assert asked == exported
    panels = json.loads(text)["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all('engine=~"$engine"' in query for query in queries)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
