"""The built-in rewards that score whole groups, and how their results join those of the plain terms.

    completions of a prompt -- all ended --> every GroupTerm.score_group --> combine with the plain terms' scores

Plain terms are functions of one response; they do not wait for the rest of the group. To add a group term, write one
file, and add its class to `CLASSES` and its name to `volley.rewards.rubric.registry`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from volley.rewards.config import RewardConfig
from volley.rewards.item import Outcome
from volley.rewards.length.relative import LengthGroup
from volley.rewards.reward_model import RewardModel
from volley.rewards.rubric.registry import GROUP_TERMS
from volley.rewards.terms import GroupTerm
from volley.rollout.errors import ConfigError
from volley.rollout.types import Score


def _judge(config: RewardConfig) -> GroupTerm:
    # Importing aiohttp takes 0.3 s, which only runs with a judge should pay.
    from volley.rewards.judge.judge import Judge

    return Judge(config)


CLASSES: dict[str, Callable[[RewardConfig], GroupTerm]] = {
    "judge": _judge,
    "reward_model": RewardModel,
    "length_group": LengthGroup,
}


def plain_terms(configs: Sequence[RewardConfig]) -> list[RewardConfig]:
    """The terms that are functions of one response."""
    return [config for config in configs if config.name not in GROUP_TERMS]


def make_group_terms(configs: Sequence[RewardConfig]) -> list[GroupTerm]:
    """Create the other terms without starting them.

    Raises RewardError for options that they do not take, ConfigError for wrong accuracy flags.
    """
    for config in configs:
        if config.name not in GROUP_TERMS:
            continue
        if config.accuracy:
            raise ConfigError(
                f"rewards: '{config.label}' has accuracy: true, but it does not decide correctness; set accuracy: true "
                "on a verifier such as math, or on none."
            )
        if config.name == "length_group" and not any(
            each.accuracy or each.name == "math" for each in plain_terms(configs)
        ):
            raise ConfigError(
                f"rewards: '{config.label}' needs to know which answers are correct, but no reward decides this; add "
                "math, or set accuracy: true on a verifier."
            )
    return [CLASSES[config.name](config) for config in configs if config.name in GROUP_TERMS]


def add_outcomes(score: Score, configs: Sequence[RewardConfig], outcomes: Sequence[Outcome]) -> Score:
    """Add the outcomes of the group terms to a score of the plain terms. configs: one per outcome."""
    by_label = dict(zip((config.label for config in configs), outcomes, strict=True))
    terms = {**score.terms, **{label: outcome.value for label, outcome in by_label.items()}}
    total = score.reward + sum(config.weight * by_label[config.label].value for config in configs)
    reason = score.unscorable or next((outcome.error for outcome in outcomes if outcome.error), "")
    if not reason and not math.isfinite(total):
        reason = "the weighted sum of the rewards is not finite"
    return dataclasses.replace(score, reward=math.nan if reason else total, terms=terms, unscorable=reason)
