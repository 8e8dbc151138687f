"""Win rate against the initial policy, and warnings about runs that got better only on paper.

- win rate: how often the current response has a higher reward than the initial policy's response to the same prompt;
  ties count half. With several responses per side it is the share over all pairs of them, and then the mean over
  prompts. If rewards mean something only within a group (a judge that compares), both are scored as one group.
- conciseness: shorter responses are no success if accuracy falls among the longest ones, which is where length is
  needed. The buckets are those of `evaluate.greedy_metrics`.
- likelihood: losses over pairs may make the chosen responses less likely, as long as the rejected ones fall more.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from volley.cluster.loop.evaluate import greedy_metrics
from volley.cluster.loop.rollout import Rollout
from volley.rewards.terms import all_of
from volley.rollout.data.parquet import read_groups, write_groups
from volley.rollout.types import ScoredGroup

Z_95 = 1.959964
SHORTER = 0.95  # of the initial length; less than 5 % is considered chance
FALLEN = 0.05  # nats per token


@dataclass(frozen=True, slots=True)
class WinRate:
    """The mean win rate over prompts, with its 95 % interval; NaN without prompts."""

    rate: float
    low: float
    high: float
    wins: int
    """Prompts with a share of wins above a half."""
    ties: int
    losses: int
    left_out: int
    """Prompts where one side has only unscorable responses."""

    @property
    def metrics(self) -> dict[str, float]:
        """Columns of an evaluation."""
        metrics = {"win_rate": self.rate, "win_rate_low": self.low, "win_rate_high": self.high}
        return {**metrics, "win_rate_left_out": float(self.left_out)}


class InitialPolicy:
    """The initial policy's responses, stored as samples in `path`, so that a resumed run has them as well.

    num_buckets: of response length.
    """

    def __init__(self, path: Path, num_buckets: int) -> None:
        self._path = path
        self._num_buckets = num_buckets

    async def compare(self, step: int, now: Sequence[ScoredGroup], rollout: Rollout) -> dict[str, float]:
        """Columns of an evaluation, from its greedy responses: win rate, and `answers_cut_short`.

        The latter is 1 if `length_warning` warns. The result is {} at step 0, and if the stored prompts are others.
        """
        if step == 0:
            await asyncio.to_thread(write_groups, self._path, now, step)
            return {}
        start = await asyncio.to_thread(read_groups, self._path) if self._path.is_file() else []
        if not start or [group.prompt.text for group in now] != [group.prompt.text for group in start]:
            return {}
        sides = list(zip(now, start, strict=True))
        rewards = [(a.rewards, b.rewards) for a, b in sides]
        if rollout.compares:
            both = await all_of([rollout.score_as_group(a.prompt, a.completions + b.completions) for a, b in sides])
            rewards = [(group.rewards[:1], group.rewards[1:]) for group in both]
        won = win_rate([a for a, _ in rewards], [b for _, b in rewards])
        then, today = greedy_metrics(start, self._num_buckets), greedy_metrics(now, self._num_buckets)
        is_known = not math.isnan(then["pass@1"] + today["pass@1"])
        return won.metrics | ({"answers_cut_short": float(bool(length_warning(then, today)))} if is_known else {})


def win_rate(now: Sequence[Sequence[float]], start: Sequence[Sequence[float]]) -> WinRate:
    """now, start: for each prompt, in the same order, the rewards of its responses, NaN where unscorable.

    The interval is the adjusted Wald interval for paired comparisons (Bonett and Price 2012). It adds one win and one
    loss, so that it stays valid for few prompts and for all ties. Raises `ValueError` if the number of prompts differs.
    """
    if len(now) != len(start):
        raise ValueError(
            f"cannot compare responses to {len(now)} prompts with initial responses to {len(start)} prompts."
        )
    found = [_share(*sides) for sides in zip(now, start, strict=True)]
    shares = [share for share in found if not math.isnan(share)]
    if not shares:
        return WinRate(math.nan, math.nan, math.nan, 0, 0, 0, len(found))
    num = len(shares) + 2
    adjusted = [*shares, 1.0, 0.0]
    mean = sum(adjusted) / num
    half = Z_95 * math.sqrt(sum((share - mean) ** 2 for share in adjusted) / num / num)
    return WinRate(
        sum(shares) / len(shares),
        max(0.0, mean - half),
        min(1.0, mean + half),
        sum(share > 0.5 for share in shares),
        sum(share == 0.5 for share in shares),
        sum(share < 0.5 for share in shares),
        len(found) - len(shares),
    )


def length_warning(start: Mapping[str, float | None], now: Mapping[str, float | None]) -> str:
    """A warning if responses got shorter and accuracy in the longest bucket dropped beyond chance; else "".

    start, now: metrics of `evaluate.greedy_metrics` (None and NaN mean unknown). Beyond chance means: such a drop
    occurs in fewer than one of twenty cases if nothing changed (one-sided, normal approximation).
    """
    longest = max((name for name in now if name.endswith("/accuracy")), key=_bucket, default="")
    lengths = _number(start, "response_length_mean"), _number(now, "response_length_mean")
    accuracies = _number(start, longest), _number(now, longest)
    per_bucket = min(_number(start, "prompts"), _number(now, "prompts")) / max(1, _bucket(longest))
    # Comparisons with NaN are false, so unknown values never warn.
    if not lengths[1] < SHORTER * lengths[0]:
        return ""
    spread = math.sqrt(sum(each * (1 - each) for each in accuracies) / per_bucket) if per_bucket > 0 else math.nan
    if not accuracies[0] - accuracies[1] > 1.645 * spread:
        return ""
    return (
        f"responses became shorter ({lengths[0]:.0f} to {lengths[1]:.0f} tokens), but accuracy among the longest ones "
        f"fell from {accuracies[0]:.2f} to {accuracies[1]:.2f}: they are cut short where length is needed. Go back to "
        "an earlier checkpoint, or reward shortness less (a smaller length reward, a lower beta of SimPO)"
    )


def chosen_warning(rows: Sequence[Mapping[str, Any]], loss: str) -> str:
    """A warning if a run on pairs made the chosen responses less likely; else "".

    rows: metrics of the steps. loss: its name. The loss only needs the rejected responses to fall faster, so the chosen
    ones may fall as well: the known failure of DPO (arXiv 2402.13228). The means of the first and the last tenth of the
    steps are compared.
    """
    chosen, rejected = (_first_and_last(rows, f"{side}_logprob") for side in ("chosen", "rejected"))
    fall = chosen[0] - chosen[1]
    if not fall > FALLEN:
        return ""
    sentence = f"the chosen responses became less likely ({chosen[0]:.2f} to {chosen[1]:.2f} nats per token)"
    shown, gentler = f"({rejected[0]:.2f} to {rejected[1]:.2f})", _gentler(loss)
    if rejected[0] - rejected[1] > fall:
        return f"{sentence}, and the rejected fell faster {shown}; {gentler}"
    if rejected[1] > rejected[0]:
        return f"{sentence}, while the rejected became more likely {shown}; the pairs are not learned. Lower " + (
            "learner.lr, and look for contradictory pairs with volley audit"
        )
    return f"{sentence}, and the rejected fell no faster {shown}; {gentler}"


def _gentler(loss: str) -> str:
    """Advice on how to keep the chosen responses likely."""
    from volley.learner.losses import LOSSES  # imports torch, which a report does without

    return LOSSES[loss].guide.gentler if loss in LOSSES else "lower learner.lr or steps"


def run_warnings(rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], loss: str) -> list[str]:
    """All warnings for the end of a run. loss: its name."""
    found = [length_warning(evaluations[0], evaluations[-1])] if evaluations else []
    return list(filter(None, [*found, chosen_warning(rows, loss)]))


def _first_and_last(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Means of the first and the last tenth of the known values; NaN for fewer than two values."""
    values = [row[name] for row in rows if row.get(name) is not None]
    part = max(1, len(values) // 10)
    return (fmean(values[:part]), fmean(values[-part:])) if len(values) > 1 else (math.nan, math.nan)


def _share(now: Sequence[float], start: Sequence[float]) -> float:
    """The share of pairs of one prompt's responses that the current one wins; NaN if there are none."""
    pairs = [(a, b) for a in now for b in start if not math.isnan(a) and not math.isnan(b)]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else math.nan


def _bucket(name: str) -> int:
    """The number in `length_bucket_N/accuracy`; 0 for no name."""
    return int(name.partition("/")[0].rpartition("_")[2] or 0)


def _number(metrics: Mapping[str, float | None], name: str) -> float:
    value = metrics.get(name)
    return math.nan if value is None else value
