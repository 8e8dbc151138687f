"""A run's metrics: `metrics.jsonl` and `evaluations.jsonl`, TensorBoard, and W&B if the recipe asks for it.

metrics.jsonl has one object per step, evaluations.jsonl one per evaluation; unknown numbers are null. Each line is on
disk before the next step starts, so a killed run has every finished step.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from volley.cluster.recipe.config import Recipe, dump_recipe
from volley.rollout.errors import ConfigError

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"


class RunLog:
    """Writes the metrics of the run in `directory`. step: finished steps of a resumed run; later rows are dropped."""

    def __init__(self, directory: Path, recipe: Recipe, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for name in (METRICS, EVALUATIONS):
            truncate(directory / name, step)
        self._metrics: IO[str] = (directory / METRICS).open("a")
        self._evaluations: IO[str] = (directory / EVALUATIONS).open("a")
        self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
        self._wandb = _start_wandb(recipe) if recipe.wandb else None

    def step(self, row: Mapping[str, float]) -> None:
        """row: at least `step`."""
        self._write(self._metrics, row, "")

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write(self._evaluations, {"step": step, **metrics}, "evaluation/")

    def close(self) -> None:
        self._tensorboard.close()
        self._metrics.close()
        self._evaluations.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, file: IO[str], row: Mapping[str, float], prefix: str) -> None:
        known = {name: value for name, value in row.items() if math.isfinite(value)}
        file.write(json.dumps({name: known.get(name) for name in row}) + "\n")
        file.flush()
        os.fsync(file.fileno())
        step = int(row["step"])
        for name, value in known.items():
            self._tensorboard.add_scalar(prefix + name, value, step)
        if self._wandb is not None:
            self._wandb.log({prefix + name: value for name, value in known.items()}, step=step)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics or evaluations file; [] if there is none. An incomplete last line (a crash) is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def truncate(path: Path, step: int) -> None:
    """Drop the rows after `step`, atomically."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row["step"] <= step]
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    temporary.rename(path)


def _start_wandb(recipe: Recipe) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "the recipe asks for wandb, but it is not installed; pip install wandb, or remove it."
        ) from None
    # The same id on resume, so that the curves continue.
    return wandb.init(
        **recipe.wandb, name=recipe.name, id=recipe.name, resume="allow", config={"recipe": dump_recipe(recipe)}
    )
