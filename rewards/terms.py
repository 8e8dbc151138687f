"""The interface of rewards that score all completions of a prompt together, and helpers for implementing one.

This module imports no concrete reward. `volley.rewards.scoring.group_terms` lists the concrete ones.
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
from volley.rewards.item import Item, Outcome
from volley.rollout.errors import RewardError

T = TypeVar("T")


class GroupTerm(Protocol):
    """One term of the weighted sum that scores all completions of a prompt together.

    A group term runs in the driver, on the event loop or in its own thread. It is not run in a scoring process,
    because it contains no user code and enforces its own time limits.
    """

    config: RewardConfig
    """The term's entry in the recipe."""

    @property
    def compares(self) -> bool:
        """Whether the term has no value for a completion without others to compare it with."""
        ...

    async def check(self, group_size: int) -> None:
        """Check before a run, within a few seconds, that the term will work. Loads no weights. Raises RewardError.

        group_size: completions per prompt; 0 if unknown.
        """
        ...

    async def start(self) -> None:
        """Open connections or load the model."""
        ...

    async def close(self) -> None:
        """Release what `start` opened."""
        ...

    async def score_group(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item, in the same order. May be called concurrently.

        Raises RewardError only to end the run.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics since the previous call, by name."""
        ...


async def all_of(work: Sequence[Awaitable[T]]) -> list[T]:
    """`asyncio.gather` that cancels the rest if one fails or the caller is cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def read_options(kind: type[T], options: Mapping[str, Any], name: str) -> T:
    """Convert the options of a group term to its options dataclass.

    Raises RewardError for an option that is unknown, missing, or of the wrong type. The message never contains the
    option's value, which might be an API key that was put there by mistake.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for option in options:
        if option not in hints:
            near = difflib.get_close_matches(option, hints, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise RewardError(f"reward '{name}' has no option '{option}'{hint}; its options are {', '.join(hints)}.")
    for each in fields:
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and each.name not in options:
            raise RewardError(f"reward '{name}' requires '{each.name}'; add it to the options in the recipe.")
    return kind(**{option: _typed(hints[option], value, option, name) for option, value in options.items()})


def _typed(hint: Any, value: Any, option: str, name: str) -> Any:
    kind = typing.get_origin(hint) or hint
    if kind is float and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-6 as text
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        words = {int: "an integer", float: "a finite number", str: "text", bool: "true or false"}
        raise RewardError(f"reward '{name}': the option '{option}' must be {words.get(kind, 'a mapping')}.")
    return value
