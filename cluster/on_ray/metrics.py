"""A run's numbers in Ray's metrics: every row of metrics.jsonl as gauges `ray_volley_<name>{run="..."}`.

They stand at the metrics port of the node that the run's driver is on, beside Ray's own and vLLM's.
"""

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge


class RayMetrics:
    """run: the value of the label that all series carry."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def step(self, row: Mapping[str, float]) -> None:
        """Show a step's row; a number that is not known keeps its last value."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                if name not in self._gauges:
                    self._gauges[name] = Gauge(
                        f"volley_{metric_name(name)}", description=f"{name} of metrics.jsonl", tag_keys=("run",)
                    )
                self._gauges[name].set(float(value), {"run": self._run})


def metric_name(name: str) -> str:
    """`seconds/update` -> `seconds_update`: what Prometheus allows."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
