"""Whether a round of self-play could still distinguish the data's completions from the policy's.

SPIN (arXiv 2401.01335, section 5) continues until the two distributions are equal. Then no function of a completion
tells where it came from, and preferring the data's completion is a coin toss.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def distinguishability(rows: Sequence[Mapping[str, Any]]) -> float:
    """The preference accuracy over the second half of a round: the policy had the first half to learn the difference.

    It is the share of pairs whose chosen side the policy raised above the rejected one; 0.5 is chance.

    rows: the round's steps in metrics.jsonl. A pair with the same tokens on both sides is never trained on, but it is
    clearly indistinguishable, so it counts as half. Every pair has the same weight, whatever its step. The result is
    1.0 if a round made no pair at all, so that such a round never ends a run.
    """
    right = total = 0.0
    for row in rows[len(rows) // 2 :]:
        pairs, same = row.get("pairs") or 0, row.get("pairs_same") or 0
        right += pairs * (row.get("preference_accuracy") or 0.0) + 0.5 * same
        total += pairs + same
    return right / total if total else 1.0
