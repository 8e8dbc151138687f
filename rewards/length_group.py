"""The length of a response against those of the prompt's other responses, as Kimi k1.5 rewards it.

arXiv 2501.12599, section 2.3.3 (length penalty), for response i of a prompt, L in tokens:

    lambda_i = 0.5 - (L_i - min L) / (max L - min L)
    reward_i = lambda_i          if it is correct
               min(0, lambda_i)  if it is not;  0 for all where every L is the same

in [-0.5, 0.5], to be added to a verifier with a weight: short answers win among correct ones, and no wrong one earns by
being short. What is correct is what the run's verifier says (the term flagged `accuracy`, or `math`). Lengths of all
responses count, also of those that cannot be judged; these get no value.

Left out: the paper's warm-up, which begins without this reward; give the first stage of a recipe none.
"""

import math
from collections.abc import Sequence

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item
from volley.rewards.length_shapes import group_relative
from volley.rewards.scoring.rubric import Outcome
from volley.rollout.errors import RewardError


class LengthGroup:
    """A `GroupTerm`. Raises RewardError for options: it takes none."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        if config.options:
            raise RewardError(f"reward '{config.name}' takes no options; leave '{next(iter(config.options))}' out.")

    @property
    def compares(self) -> bool:
        """Alone it is worth 0, as where every length is the same."""
        return False

    async def check(self, group_size: int) -> None:
        if group_size == 1:
            raise RewardError(
                f"reward '{self.config.name}' compares a prompt's responses, but rollout.group_size is 1; set it to at "
                "least 2."
            )

    async def start(self) -> None:
        """Nothing is kept open."""

    async def close(self) -> None:
        """As `start`."""

    async def score_group(self, items: Sequence[Item]) -> list[Outcome]:
        values = group_relative([item.num_tokens for item in items], [item.accuracy == 1.0 for item in items])
        unknown = Outcome(math.nan, f"reward '{self.config.label}': whether the answer is correct is not known")
        return [
            unknown if math.isnan(item.accuracy) else Outcome(value) for item, value in zip(items, values, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        return {}
