"""The dashboard shows only series that a run has."""

import json
import re
from pathlib import Path

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "volley.json"
ROOT = DASHBOARD.parents[2]


def test_every_series_is_a_number_of_metrics_jsonl() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    names = {match for expression in expressions for match in re.findall(r"ray_volley_(\w+)\{", expression)}
    assert len(names) > 20
    sources = "".join(path.read_text() for package in ("cluster", "learner") for path in (ROOT / package).rglob("*.py"))
    for name in names:
        known = name.removeprefix("seconds_")
        assert f'"{known}"' in sources, f"nothing writes '{known}'"


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    corners = {(place["x"], place["y"]) for place in places}
    assert len(corners) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
