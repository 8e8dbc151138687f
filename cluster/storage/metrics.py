"""A run's numbers: `metrics.jsonl` and `evaluations.jsonl`, TensorBoard beside them, W&B when the recipe asks for it.

metrics.jsonl holds one object per step, evaluations.jsonl one per evaluation; a number that is not known is null. Each
line is on disk before the next step starts, so a killed run has every finished step.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from volley.cluster.recipe.config import Recipe, dump_recipe
from volley.rollout.errors import ConfigError
from volley.rollout.types import Score, ScoredGroup

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"


class RunLog:
    """Writes the numbers of the run in `directory`. step: what a resumed run has behind it; later rows are dropped."""

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
    """The rows of a metrics or evaluations file; [] where there is none. A last line that a crash cut off is left
    out."""
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


def group_metrics(groups: Sequence[ScoredGroup], version: int) -> dict[str, float]:
    """What a step's samples say. version: of the weights that are about to learn from them. Rewards are averaged over
    scorable completions; a term or accuracy that is nowhere known is left out.

    Where the policy answers, everything is of its own answers only, not of a data set's beside them (SPIN). Where all
    is from a data set, samples, tokens and rewards (1 and 0) are the data's, and what would describe a policy's answers
    is left out: length, share cut off, share of groups without signal.
    """
    everything = [each for group in groups for each in zip(group.completions, group.scores, strict=True)]
    sampled = [each for each in everything if each[0].is_sampled]
    completions = [completion for completion, _ in sampled or everything]
    scores = [score for _, score in sampled or everything]
    metrics = {
        "samples": len(completions),
        "completion_tokens": sum(len(completion.token_ids) for completion in completions),
        "reward_mean": _mean([score.reward for score in scores]),
        "accuracy": _mean([score.accuracy for score in scores]),
        "no_answer_share": no_answer_share(scores),
        "staleness_max": version - min(group.first_version for group in groups),
        "unscorable": sum(bool(score.unscorable) for score in scores),
    }
    if sampled:
        metrics["response_length_mean"] = _mean([float(len(completion.token_ids)) for completion in completions])
        metrics["truncated_share"] = _mean([float(completion.truncated) for completion in completions])
        metrics["zero_variance_share"] = _mean([float(not group.has_signal) for group in groups])
    for name in sorted({name for score in scores for name in score.terms}):
        metrics[f"reward/{name}"] = _mean([score.terms[name] for score in scores if name in score.terms])
    return metrics


def no_answer_share(scores: Sequence[Score]) -> float:
    """Of the judged ones, those in which the verifier found no answer; NaN where it does not tell what it found."""
    judged = [score for score in scores if not math.isnan(score.accuracy) and score.extracted is not None]
    return _mean([float(score.is_answerless) for score in judged])


def residual(accounting: Mapping[str, int]) -> int:
    """issued - (trained + dropped + queued + in flight): 0, or prompts got lost."""
    return accounting["issued"] - sum(count for name, count in accounting.items() if name != "issued")


def _mean(values: Sequence[float]) -> float:
    """Over the known values; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _start_wandb(recipe: Recipe) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "the recipe asks for wandb, but it is not installed; pip install wandb, or remove it."
        ) from None
    # The same id on resume, so that the curves go on instead of starting anew.
    return wandb.init(
        **recipe.wandb, name=recipe.name, id=recipe.name, resume="allow", config={"recipe": dump_recipe(recipe)}
    )
