"""Rewards that a plain function of one response cannot be: a judge over the network, a model in a thread, a length
against the lengths of the others.

    completions of a prompt -- all there --> every GroupTerm.score_group --> combine with the plain terms' scores

A group term sees all G completions of a prompt at once, when the last of them has ended; plain terms do not wait for
that. It runs in the driver, on the event loop or in a thread of its own, not in the children that can be killed: it has
no user code in it, and its own deadlines. A new one is one file, and one entry here and in `function`.
"""

import asyncio
import contextlib
import dataclasses
import difflib
import math
import typing
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item
from volley.rewards.scoring.function import GROUP_TERMS
from volley.rewards.scoring.rubric import Outcome
from volley.rollout.errors import ConfigError, RewardError
from volley.rollout.types import Score

T = TypeVar("T")


class GroupTerm(Protocol):
    """One term of the weighted sum that scores all completions of a prompt together.

    config: its entry in the recipe. compares: whether it can say nothing of a completion alone. check: what can be
    found out before a run without loading anything heavy; at most some seconds; raises RewardError. start, close: what
    it keeps open while it scores. score_group: one outcome per item, in their order; any number of calls at once;
    raises RewardError only to end the run. metrics: numbers since the last call, by name.
    """

    config: RewardConfig

    @property
    def compares(self) -> bool: ...
    async def check(self, group_size: int) -> None: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def score_group(self, items: Sequence[Item]) -> list[Outcome]: ...
    def metrics(self) -> dict[str, float]: ...


def plain_terms(configs: Sequence[RewardConfig]) -> list[RewardConfig]:
    """Those that are functions of one item."""
    return [config for config in configs if config.name not in GROUP_TERMS]


def make_group_terms(configs: Sequence[RewardConfig]) -> list[GroupTerm]:
    """The others, not started. Raises RewardError for options they do not take, ConfigError for accuracy flags."""
    terms: list[GroupTerm] = []
    for config in configs:
        if config.name not in GROUP_TERMS:
            continue
        if config.accuracy:
            raise ConfigError(
                f"rewards: '{config.label}' says accuracy: true, but it cannot tell what is correct; flag a "
                "verifier such as math, or none."
            )
        if config.name == "judge":
            from volley.rewards.judge.judge import Judge

            terms.append(Judge(config))
        elif config.name == "length_group":
            from volley.rewards.length_group import LengthGroup

            if not any(each.accuracy or each.name == "math" for each in plain_terms(configs)):
                raise ConfigError(
                    f"rewards: '{config.label}' asks which answers are correct, but no reward tells; add math, or flag "
                    "a verifier with accuracy: true."
                )
            terms.append(LengthGroup(config))
        else:
            from volley.rewards.reward_model import RewardModel

            terms.append(RewardModel(config))
    return terms


def add_outcomes(score: Score, configs: Sequence[RewardConfig], outcomes: Sequence[Outcome]) -> Score:
    """`score`, which the plain terms gave, with a group term's outcome for each of `configs`."""
    found = dict(zip((config.label for config in configs), outcomes, strict=True))
    terms = {**score.terms, **{label: outcome.value for label, outcome in found.items()}}
    total = score.reward + sum(config.weight * found[config.label].value for config in configs)
    reason = score.unscorable or next((outcome.error for outcome in outcomes if outcome.error), "")
    if not reason and not math.isfinite(total):
        reason = "the weighted sum of the rewards is not finite"
    return dataclasses.replace(score, reward=math.nan if reason else total, terms=terms, unscorable=reason)


async def all_of(work: Sequence[Awaitable[T]]) -> list[T]:
    """`asyncio.gather` that leaves nothing running when one fails or the caller is cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def read_options(kind: type[T], options: Mapping[str, Any], name: str) -> T:
    """The options of a group term as the dataclass that it declares. Raises RewardError for one that is unknown,
    missing or of another type; the message never holds a value, which might be a key that someone put there."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for option in options:
        if option not in hints:
            near = difflib.get_close_matches(option, hints, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise RewardError(f"reward '{name}' has no option '{option}'{hint}; it takes {', '.join(hints)}.")
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in options:
            raise RewardError(f"reward '{name}' requires '{field.name}'; add it to the options in the recipe.")
    return kind(**{option: _typed(hints[option], value, option, name) for option, value in options.items()})


def _typed(hint: Any, value: Any, option: str, name: str) -> Any:
    kind = typing.get_origin(hint) or hint
    if kind is float and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-6 as text, which nobody means
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
        raise RewardError(f"reward '{name}': the option '{option}' must be {words.get(kind, 'keys with values')}.")
    return value
