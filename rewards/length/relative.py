"""Length of a response relative to the other responses to the same prompt (Kimi k1.5).

arXiv 2501.12599, section 2.3.3 (length penalty), for response i of a prompt, L in tokens:

    lambda_i = 0.5 - (L_i - min L) / (max L - min L)
    reward_i = lambda_i          if it is correct
               min(0, lambda_i)  if it is not;  0 for all if every L is the same

The reward is in [-0.5, 0.5] and is added to a verifier with a weight. Short correct responses are preferred, and no
incorrect response gains by being short. Correctness comes from the run's verifier (the term with `accuracy: true`, or
`math`). Responses that cannot be judged get no value, but their length counts for the minimum and the maximum.

Left out: the paper's warm-up without this reward. Omit the reward in the first stage of a recipe instead.
"""

import math
from collections.abc import Sequence

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome
from volley.rollout.errors import RewardError


def group_relative(num_tokens: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """The formula above for the completions of one prompt. Raises ValueError if the arguments differ in size."""
    if len(num_tokens) != len(correct):
        raise ValueError(
            f"there are {len(num_tokens)} lengths but {len(correct)} verdicts; give one of each per completion"
        )
    shortest, longest = min(num_tokens, default=0), max(num_tokens, default=0)
    if shortest == longest:
        return [0.0] * len(num_tokens)
    scaled = [0.5 - (length - shortest) / (longest - shortest) for length in num_tokens]
    return [value if is_correct else min(0.0, value) for value, is_correct in zip(scaled, correct, strict=True)]


class LengthGroup:
    """The `GroupTerm` that applies `group_relative`. Raises RewardError for options, because it takes none."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        if config.options:
            raise RewardError(f"reward '{config.name}' takes no options; remove '{next(iter(config.options))}'.")

    @property
    def compares(self) -> bool:
        """False: a single completion gets 0, like completions of equal length."""
        return False

    async def check(self, group_size: int) -> None:
        """Raise RewardError for groups of one."""
        if group_size == 1:
            raise RewardError(
                f"reward '{self.config.name}' compares the responses to a prompt, but rollout.group_size is 1; set it "
                "to at least 2."
            )

    async def start(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to release."""

    async def score_group(self, items: Sequence[Item]) -> list[Outcome]:
        """Outcomes in [-0.5, 0.5], or failed ones for items that could not be judged."""
        values = group_relative([item.num_tokens for item in items], [item.accuracy == 1.0 for item in items])
        unknown = Outcome(math.nan, f"reward '{self.config.label}': it is not known whether the answer is correct")
        return [
            unknown if math.isnan(item.accuracy) else Outcome(value) for item, value in zip(items, values, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}
