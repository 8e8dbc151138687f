"""A run's metrics in Ray: every row of metrics.jsonl as gauges `ray_volley_<name>{run="..."}`.

They are served at the metrics port of the driver's node, together with Ray's own metrics and vLLM's.
"""

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge


class RayMetrics:
    """run: the value of the `run` label of all series."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def export(self, row: Mapping[str, float]) -> None:
        """Set the gauges to a step's row; a metric without a value keeps its last one."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                if name not in self._gauges:
                    self._gauges[name] = Gauge(
                        f"volley_{metric_name(name)}", description=f"{name} of metrics.jsonl", tag_keys=("run",)
                    )
                self._gauges[name].set(float(value), {"run": self._run})


def metric_name(name: str) -> str:
    """A name that Prometheus allows: `seconds/update` -> `seconds_update`."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
