"""The run's numbers on disk, and what a step's samples say."""

import io
import json
import math
from pathlib import Path

import pytest

from volley.cluster.loop.group_metrics import group_metrics
from volley.cluster.recipe.config import parse_recipe
from volley.cluster.run.progress import Progress
from volley.cluster.storage.metrics import RunLog, read_rows
from volley.rollout.errors import ConfigError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids

RECIPE = parse_recipe({"name": "a", "model": "m", "data": {"train": "t"}, "steps": 9})
ROW = {"step": 1, "reward_mean": 0.5, "accuracy": math.nan, "samples": 8, "completion_tokens": 80, "samples_per_s": 2.0}


def group(scores: list[Score], version: int = 3, length: int = 4) -> ScoredGroup:
    completion = Completion.single((1,) * length, (-1.0,) * length, "x", "length", version, version)
    return ScoredGroup(Prompt(0, 0, "p", as_token_ids((1,)), ""), (completion,) * len(scores), tuple(scores))


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


def test_unscorable_samples_are_counted_and_not_averaged() -> None:
    scores = [
        Score(1.1, {"math": 1.0, "format": 1.0}, accuracy=1.0),
        Score(0.1, {"math": 0.0, "format": 1.0}, accuracy=0.0),
        Score(math.nan, {"math": math.nan, "format": 1.0}, "reward 'math' timed out"),
    ]
    metrics = group_metrics([group(scores), group([Score(1.0, {"math": 1.0}, accuracy=1.0)] * 3, version=1)], 4)
    assert metrics["samples"] == 6
    assert metrics["unscorable"] == 1
    assert metrics["reward_mean"] == pytest.approx((1.1 + 0.1 + 3) / 5)
    assert metrics["reward/math"] == pytest.approx(4 / 5)
    assert metrics["reward/format"] == 1.0
    assert metrics["accuracy"] == pytest.approx(4 / 5)
    assert metrics["zero_variance_share"] == 0.5
    assert metrics["staleness_max"] == 3
    assert metrics["truncated_share"] == 1.0
    assert metrics["response_length_mean"] == 4


def test_metrics_exclude_completions_of_the_data_set() -> None:
    def answered(length: int, reason: str) -> Completion:
        return Completion.single((1,) * length, (0.0,) * length, "x", reason, 3, 3)

    prompt, scores = Prompt(0, 0, "p", as_token_ids((1,)), ""), (Score(1.0, {}), Score(0.0, {}, accuracy=1.0))
    beside = group_metrics([ScoredGroup(prompt, (answered(9, "data"), answered(4, "length")), scores)], 3)
    assert (beside["samples"], beside["completion_tokens"], beside["reward_mean"]) == (1, 4, 0.0)
    assert (beside["response_length_mean"], beside["truncated_share"], beside["accuracy"]) == (4, 1.0, 1.0)
    pair = group_metrics([ScoredGroup(prompt, (answered(9, "data"), answered(4, "data")), scores)], 3)
    assert (pair["samples"], pair["completion_tokens"], pair["reward_mean"]) == (2, 13, 0.5)
    assert not {"response_length_mean", "truncated_share", "zero_variance_share"} & set(pair)


def test_missing_answers_are_counted_separately_from_wrong_ones() -> None:
    def scores(*found: tuple[float, str | None]) -> list[Score]:
        return [Score(0.0, {}, accuracy=accuracy, extracted=extracted) for accuracy, extracted in found]

    known = scores((1.0, "18"), (0.0, "19"), (0.0, ""), (0.0, ""), (math.nan, ""))
    assert group_metrics([group(known)], 4)["no_answer_share"] == 0.5
    assert math.isnan(group_metrics([group(scores((1.0, None), (0.0, None), (math.nan, "")))], 4)["no_answer_share"])


def test_progress_is_quiet_without_a_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(9, stream=stream)
    progress.evaluation({"pass@1": 0.25})
    for step in range(1, 10):
        progress.step({**ROW, "step": step})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 1/9  reward 0.50  2 samples/s  20 tokens/s  pass@1 0.25")
    assert "accuracy" not in lines[0]
    assert lines[1].startswith("step 9/9")
