"""Where a run's time goes, how fast it could be, and what to change.

With g seconds of generation and t seconds of learning (update and push) per step, taking turns costs g + t. Overlapping
them costs max(g, t) at best. So asynchrony can speed a run up by (g + t) / max(g, t), which is at most 2. Generation is
counted while at least one request is in flight, so time spent waiting for a free slot is not included.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SKIPPED_SHARE = 4
"""The first quarter of the steps is skipped: compilation and the first pushes."""


@dataclass(frozen=True)
class Diagnosis:
    """Seconds of a median step."""

    generate: float
    """Overlaps with the other parts, like `score`."""
    score: float
    wait: float
    """Waiting for groups."""
    train: float
    push: float
    step: float
    """The whole step."""

    @property
    def bound(self) -> float:
        """The best possible speed-up of asynchronous training over taking turns."""
        learn = self.train + self.push
        return (self.generate + learn) / max(self.generate, learn, 1e-9)

    @property
    def reached(self) -> float:
        """The actual speed-up."""
        return (self.generate + self.train + self.push) / max(self.step, 1e-9)


def diagnose(rows: Sequence[Mapping[str, Any]]) -> Diagnosis | None:
    """Diagnose the rows of metrics.jsonl; None for fewer than four steps, or if nothing was generated."""
    rows = rows[len(rows) // SKIPPED_SHARE :]
    if len(rows) < 4:
        return None

    def median(name: str) -> float:
        return statistics.median(row.get(f"seconds/{name}") or 0.0 for row in rows)

    # The median ignores the steps with evaluations and checkpoints between them.
    step = statistics.median(row["samples"] / row["samples_per_s"] for row in rows)
    generate = median("generate")
    if not generate:
        return None
    return Diagnosis(generate, median("score"), median("wait"), median("update"), median("publish"), step)


def explain(found: Diagnosis, max_staleness: int, is_cluster: bool) -> list[str]:
    """Lines for the user: the times, the bound, and the change that would help most."""
    parts = {"generate": found.generate, "score": found.score, "wait": found.wait, "train": found.train}
    parts["push"] = found.push
    lines = [
        "time per step: "
        + "  ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
        + f"  in {found.step:.2f} s"
    ]
    share = found.reached / found.bound
    lines.append(
        f"overlapping generation and training could give {found.bound:.2f}x; this run got {found.reached:.2f}x "
        f"({share:.0%} of the bound)"
    )
    return [*lines, _advice(found, max_staleness, is_cluster, share)]


def _advice(found: Diagnosis, max_staleness: int, is_cluster: bool, share: float) -> str:
    learn = found.train + found.push
    if max_staleness == 0 and found.bound > 1.15:
        return f"faster: max_staleness: 1 overlaps generation and training (up to {found.bound:.2f}x)"
    if found.push > 0.15 * found.step:
        return "faster: pushes take long; publish_every: 2 halves their number, a larger transfer.bucket_bytes may help"
    if found.score > 0.5 * found.generate:
        return "faster: scoring takes long; raise scorer.workers, or make the slowest reward cheaper"
    if share < 0.85 and max_staleness:
        return f"faster: neither generation nor training is always busy; try max_staleness: {max_staleness + 1}"
    if found.generate > 1.3 * learn:
        times = math.ceil(found.generate / max(learn, 1e-9))
        more = f"{times} times as many rollout.workers" if is_cluster else "launcher: ray with more rollout.workers"
        return f"faster: generation is slower than training; use {more}"
    if learn > 1.3 * found.generate:
        return "faster: training is slower than generation; raise learner.ranks or learner.max_tokens_per_micro_batch"
    return "generation and training are balanced; larger batches (groups_per_step) amortize the remaining overhead"
