"""Evaluation against the start of the run: who wins, and whether answers got shorter at the price of being wrong.

- win rate: how often the answers of now have a higher reward than the starting model's to the same prompt; ties count
  half. With several answers a side, the share over all pairs of them, then the mean over prompts. Where rewards mean
  something only within a group (a judge who compares), both answers are scored as one group of two.
- conciseness: a falling response length is no success where accuracy falls among the longest answers, which is where
  length is needed. The buckets are those of `evaluate.greedy_metrics`.
- likelihood: losses over pairs may lower what is chosen, as long as they lower what is rejected more.
"""

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
SHORTER = 0.95  # of the length at the start; less than 5 % is taken for chance
FALLEN = 0.05  # nats a token


@dataclass(frozen=True, slots=True)
class WinRate:
    """rate, low, high: mean over prompts, and its 95 % interval; NaN without prompts. wins, ties, losses: prompts by
    their own share above, at and below a half. left_out: prompts with nothing but unscorable answers on a side."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    left_out: int

    @property
    def metrics(self) -> dict[str, float]:
        """For an evaluation's record."""
        metrics = {"win_rate": self.rate, "win_rate_low": self.low, "win_rate_high": self.high}
        return {**metrics, "win_rate_left_out": float(self.left_out)}


class Start:
    """What the model answered before the first step, kept as samples in `path`, so that a resumed run has it, too.
    num_buckets: of response length."""

    def __init__(self, path: Path, num_buckets: int) -> None:
        self._path = path
        self._num_buckets = num_buckets

    async def compare(self, step: int, now: Sequence[ScoredGroup], rollout: Rollout) -> dict[str, float]:
        """For the record of an evaluation, from its greedy answers: win rate, and `answers_cut_short`, 1 where
        `length_warning` warns; {} at the start itself, and where the start answered other prompts."""
        if step == 0:
            write_groups(self._path, now, step)
        start = read_groups(self._path) if step and self._path.is_file() else []
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
    """now, start: for each prompt, in the same order, the rewards of its answers, NaN where unscorable.

    The interval is the adjusted Wald interval for paired comparisons (Bonett and Price 2012): as if there were one more
    win and one more loss, which keeps it honest for few prompts and where all are ties. Raises `ValueError` where the
    two are not for the same prompts.
    """
    if len(now) != len(start):
        raise ValueError(
            f"there are answers to {len(now)} prompts now and to {len(start)} at the start; compare equals."
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
    """A sentence where answers got shorter and those of the longest bucket less often right, beyond chance; else "".

    start, now: metrics as `evaluate.greedy_metrics` gives them (None, like NaN, is not known). Chance: a fall that
    happens in fewer than one of twenty cases where nothing changed (one-sided, normal approximation).
    """
    longest = max((name for name in now if name.endswith("/accuracy")), key=_bucket, default="")
    lengths = _number(start, "response_length_mean"), _number(now, "response_length_mean")
    accuracies = _number(start, longest), _number(now, longest)
    per_bucket = min(_number(start, "prompts"), _number(now, "prompts")) / max(1, _bucket(longest))
    # Comparisons with NaN are false, so what is not known never warns.
    if not lengths[1] < SHORTER * lengths[0]:
        return ""
    spread = math.sqrt(sum(each * (1 - each) for each in accuracies) / per_bucket) if per_bucket > 0 else math.nan
    if not accuracies[0] - accuracies[1] > 1.645 * spread:
        return ""
    return (
        f"answers became shorter ({lengths[0]:.0f} to {lengths[1]:.0f} tokens), but accuracy among the longest ones "
        f"fell from {accuracies[0]:.2f} to {accuracies[1]:.2f}: they are cut short where length is needed; go back to "
        "an earlier checkpoint, or press less on length (a smaller length reward, a lower beta of SimPO)"
    )


def chosen_warning(rows: Sequence[Mapping[str, Any]], loss: str) -> str:
    """A sentence where a run on pairs made what is chosen less likely than it was; else "".

    rows: metrics of the steps. loss: its name. That the rejected fall faster is enough for the loss, so the chosen may
    fall, too: the known failure of DPO (arXiv 2402.13228). The mean of the last tenth is compared with that of the
    first.
    """
    chosen, rejected = (_first_and_last(rows, f"{side}_logprob") for side in ("chosen", "rejected"))
    fall = chosen[0] - chosen[1]
    if not fall > FALLEN:
        return ""
    sentence = f"the chosen answers became less likely ({chosen[0]:.2f} to {chosen[1]:.2f} nats a token)"
    shown, gentler = f"({rejected[0]:.2f} to {rejected[1]:.2f})", _gentler(loss)
    if rejected[0] - rejected[1] > fall:
        return f"{sentence}, and the rejected fell faster {shown}; {gentler}"
    if rejected[1] > rejected[0]:
        return f"{sentence}, while the rejected became more likely {shown}; the pairs are not learned: lower " + (
            "learner.lr, and look for contradictory pairs with volley audit"
        )
    return f"{sentence}, and the rejected fell no faster {shown}; {gentler}"


def _gentler(loss: str) -> str:
    """What keeps the chosen answers likely."""
    from volley.learner.losses import LOSSES  # imports torch, which a report does without

    return LOSSES[loss].guide.gentler if loss in LOSSES else "lower learner.lr or steps"


def warnings(rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], loss: str) -> list[str]:
    """What a run's user should know at its end, from all that it has measured. loss: its name."""
    found = [length_warning(evaluations[0], evaluations[-1])] if evaluations else []
    return list(filter(None, [*found, chosen_warning(rows, loss)]))


def _first_and_last(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Means of the first and the last tenth of what is known; NaN for fewer than two."""
    values = [row[name] for row in rows if row.get(name) is not None]
    part = max(1, len(values) // 10)
    return (fmean(values[:part]), fmean(values[-part:])) if len(values) > 1 else (math.nan, math.nan)


def _share(now: Sequence[float], start: Sequence[float]) -> float:
    """Of the pairs of one prompt's answers, how many the one of now wins; NaN if there are none."""
    pairs = [(a, b) for a in now for b in start if not math.isnan(a) and not math.isnan(b)]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else math.nan


def _bucket(name: str) -> int:
    """The number in `length_bucket_N/accuracy`; 0 for no name."""
    return int(name.partition("/")[0].rpartition("_")[2] or 0)


def _number(metrics: Mapping[str, float | None], name: str) -> float:
    value = metrics.get(name)
    return math.nan if value is None else value
