"""The files of a run's metrics."""

import json
import math
from pathlib import Path

import pytest

from volley.cluster.recipe.config import parse_recipe
from volley.cluster.storage.metrics import RunLog, read_rows
from volley.rollout.errors import ConfigError

RECIPE = parse_recipe({"name": "a", "model": "m", "data": {"train": "t"}, "steps": 9})
ROW = {"step": 1, "reward_mean": 0.5, "accuracy": math.nan, "samples": 8, "completion_tokens": 80, "samples_per_s": 2.0}


def test_rows_are_on_disk_at_once_and_unknown_numbers_are_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, RECIPE)
    log.step(ROW)
    log.evaluation(1, {"pass@1": 0.25})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {**ROW, "accuracy": None}
    assert read_rows(tmp_path / "evaluations.jsonl") == [{"step": 1, "pass@1": 0.25}]
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, RECIPE)
    for step in (1, 2, 3):
        log.step({**ROW, "step": step})
        log.evaluation(step, {"pass@1": 0.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    RunLog(tmp_path, RECIPE, step=2).close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [row["step"] for row in read_rows(tmp_path / "evaluations.jsonl")] == [1, 2]


def test_wandb_is_used_only_if_the_recipe_names_it(tmp_path: Path) -> None:
    recipe = parse_recipe({"name": "a", "model": "m", "data": {"train": "t"}, "steps": 9, "wandb": {"project": "p"}})
    with pytest.raises(ConfigError, match="not installed"):
        RunLog(tmp_path, recipe)
