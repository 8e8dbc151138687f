"""Where a run's time goes, how fast it could be, and what to change.

With g seconds of generation and t of learning (update and push) a step, taking turns costs g + t and side by side at
best max(g, t): asynchrony can speed a run up by (g + t) / max(g, t), at most 2. Generation counts while at least one
request is in flight, so what waits for a free slot is not in it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SKIPPED_SHARE = 4
"""The first quarter of the steps is left out: compilation and first pushes."""


@dataclass(frozen=True)
class Diagnosis:
    """Seconds of a median step: generate, score (both overlap with the rest), wait (for groups), train, push; step: all
    of it. bound: the best asynchronous speed-up over taking turns for these times; reached: the speed-up there was."""

    generate: float
    score: float
    wait: float
    train: float
    push: float
    step: float

    @property
    def bound(self) -> float:
        learn = self.train + self.push
        return (self.generate + learn) / max(self.generate, learn, 1e-9)

    @property
    def reached(self) -> float:
        return (self.generate + self.train + self.push) / max(self.step, 1e-9)


def diagnose(rows: Sequence[Mapping[str, Any]]) -> Diagnosis | None:
    """From the rows of metrics.jsonl; None for fewer than four steps, or where nothing was generated."""
    rows = rows[len(rows) // SKIPPED_SHARE :]
    if len(rows) < 4:
        return None

    def median(name: str) -> float:
        return statistics.median(row.get(f"seconds/{name}") or 0.0 for row in rows)

    # Evaluations and checkpoints stand between some steps; the median passes them by.
    step = statistics.median(row["samples"] / row["samples_per_s"] for row in rows)
    generate = median("generate")
    if not generate:
        return None
    return Diagnosis(generate, median("score"), median("wait"), median("update"), median("publish"), step)


def explain(found: Diagnosis, max_staleness: int, is_cluster: bool) -> list[str]:
    """Lines for the user: the times, the bound, and the one change that would help most."""
    parts = {"generate": found.generate, "score": found.score, "wait": found.wait, "train": found.train}
    parts["push"] = found.push
    lines = [
        "a step: "
        + "  ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
        + f"  in {found.step:.2f} s"
    ]
    share = found.reached / found.bound
    lines.append(
        f"side by side, generating and learning could be {found.bound:.2f} times as fast as in turn; this run was "
        f"{found.reached:.2f} times as fast ({share:.0%} of the bound)"
    )
    return [*lines, _advice(found, max_staleness, is_cluster, share)]


def _advice(found: Diagnosis, max_staleness: int, is_cluster: bool, share: float) -> str:
    learn = found.train + found.push
    if max_staleness == 0 and found.bound > 1.15:
        return f"faster: max_staleness: 1 lets both go side by side (up to {found.bound:.2f} times)"
    if found.push > 0.15 * found.step:
        return "faster: pushes take long; publish_every: 2 halves them, a larger transfer.bucket_bytes may help"
    if found.score > 0.5 * found.generate:
        return "faster: scoring takes long; raise scorer.workers, or make the slowest reward cheaper"
    if share < 0.85 and max_staleness:
        return f"faster: neither side is busy all the time; try max_staleness: {max_staleness + 1}"
    if found.generate > 1.3 * learn:
        times = math.ceil(found.generate / max(learn, 1e-9))
        more = f"{times} times as many rollout.workers" if is_cluster else "launcher: ray with more rollout.workers"
        return f"faster: generation is the longer side; {more} would match it"
    if learn > 1.3 * found.generate:
        return "faster: learning is the longer side; raise learner.ranks or learner.max_tokens_per_micro_batch"
    return "both sides are balanced; larger batches (groups_per_step) amortise what is left"
