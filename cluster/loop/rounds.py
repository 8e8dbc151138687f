"""Whether a round of self-play could still tell the data's answers from the policy's.

SPIN (arXiv 2401.01335, section 5) plays until the two distributions are one: then no function of an answer says where
it came from, and preferring the data's is a coin toss.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def distinguishability(rows: Sequence[Mapping[str, Any]]) -> float:
    """The preference accuracy over the second half of a round, when the policy has had the first half to learn the
    difference: the share of pairs whose chosen side it has raised above the rejected one; 0.5 is chance.

    rows: the round's steps in metrics.jsonl. A pair with the same tokens on both sides is never trained on, but is the
    plainest case of one that nobody can tell: it counts as half. Every pair weighs the same, whatever its step. 1.0
    where a round made no pair at all, which says nothing.
    """
    right = total = 0.0
    for row in rows[len(rows) // 2 :]:
        pairs, same = row.get("pairs") or 0, row.get("pairs_same") or 0
        right += pairs * (row.get("preference_accuracy") or 0.0) + 0.5 * same
        total += pairs + same
    return right / total if total else 1.0
