"""The weighted sum of a run's rewards, as a pure function of one item.

A term that raises, or returns anything but a finite number, makes its item unscorable with a reason; it is never taken
for 0. The other terms are kept for the metrics.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Unscorable
from volley.rewards.math.expressions.limits import TimeLimitError, time_limit
from volley.rewards.scoring.function import (
    ALWAYS_CHEAP,
    BUILT_IN,
    CHEAP,
    JUDGES,
    READS,
    bind,
    check_built_in,
    check_name,
    check_reward,
    load_reward,
)
from volley.rewards.terms import Outcome
from volley.rollout.errors import ConfigError
from volley.rollout.types import Score

MAX_MESSAGE = 200
CHEAP_S = 0.1
"""What the caller may spend on one cheap term before it leaves it to a child."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the run's verifier takes for the answer of a response; text: None where there is none. is_known: False where
    no verifier tells, or to find out takes too long. seconds: what it took."""

    text: str | None = None
    is_known: bool = True
    seconds: float = field(default=0.0, compare=False)


class Rubric:
    """The terms of a run. Making one loads none of the user's code; `load` does.

    Raises ConfigError for labels or accuracy flags that stand there twice, RewardError for unknown built-in rewards and
    wrong options of known ones.
    """

    def __init__(self, terms: Sequence[RewardConfig]) -> None:
        labels = [term.label for term in terms]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(f"rewards: '{label}' stands there twice; give one of the terms another label.")
        flagged = [index for index, term in enumerate(terms) if term.accuracy]
        if len(flagged) > 1:
            raise ConfigError("rewards: more than one term says accuracy: true; only one can tell what is correct.")
        for term in terms:
            check_name(term.name)
            if term.name in BUILT_IN:
                check_built_in(term.name, term.options)
        by_default = [index for index, term in enumerate(terms) if term.name == "math"]
        self.terms = tuple(terms)
        self._accuracy = next(iter(flagged or by_default), None)
        judge = None if self._accuracy is None else self.terms[self._accuracy]
        self._reads = bind(READS[judge.name], judge.options) if judge and judge.name in READS else None
        pair = JUDGES.get(judge.name) if judge else None
        self._judges = tuple(bind(each, judge.options) for each in pair) if judge and pair else None
        self._functions: list[Callable[[Item], Any] | None] = [None] * len(terms)
        self._cheap = [bind(CHEAP[term.name], term.options) if term.name in CHEAP else None for term in terms]

    @property
    def needs_children(self) -> bool:
        """Whether some item may need a process of its own."""
        return not all(term.name in ALWAYS_CHEAP for term in self.terms)

    @property
    def own_terms(self) -> list[RewardConfig]:
        """The terms that are the user's functions."""
        return [term for term in self.terms if ":" in term.name]

    def load(self, columns: Collection[str] | None = None, announce: Callable[[str], None] = lambda name: None) -> None:
        """Import every function and check that it can be called. announce: told each name before its import.
        Raises RewardError."""
        for index, term in enumerate(self.terms):
            announce(term.name)
            function = load_reward(term.name)
            check_reward(function, columns, term.name, term.options)
            self._functions[index] = bind(function, term.options)

    def read(self, item: Item) -> Reading:
        """What all terms and the score need to know of the response's answer, found once. Never raises."""
        if self._reads is None:
            return Reading(is_known=False)
        started = time.perf_counter()
        try:
            with time_limit(CHEAP_S):
                text = self._reads(item)
        except Exception:
            return Reading(is_known=False)
        return Reading(text, seconds=time.perf_counter() - started)

    def needs_response(self, terms: Sequence[int], reading: Reading) -> bool:
        """Whether these terms see more of the response than what was read in it."""
        return list(terms) != [self._accuracy] or self._judges is None or not reading.is_known

    def compute(self, index: int, item: Item, reading: Reading | None = None) -> Outcome:
        """One term, after `load`; of what was read where that is enough. Never raises, except KeyboardInterrupt."""
        if reading and self._judges and not self.needs_response([index], reading):
            return _outcome(self.terms[index].label, partial(self._judges[1], item, reading.text))
        function = self._functions[index]
        assert function is not None, "Rubric.load comes first"
        return _outcome(self.terms[index].label, partial(function, item))

    def compute_cheaply(self, item: Item, reading: Reading | None = None) -> list[Outcome | None]:
        """The terms that take microseconds and no user's code; None for the others."""
        reading = reading or self.read(item)
        return [self._compute_cheaply(index, item, reading) for index in range(len(self.terms))]

    def _compute_cheaply(self, index: int, item: Item, reading: Reading) -> Outcome | None:
        if self._judges and index == self._accuracy:
            function = partial(self._judges[0], item, reading.text) if reading.is_known else None
        else:
            function = partial(cheap, item) if (cheap := self._cheap[index]) else None
        if function is None:
            return None
        undecided = False

        def call() -> Any:
            nonlocal undecided
            try:
                with time_limit(CHEAP_S):
                    value = function()
            except TimeLimitError:
                value = None
            undecided = value is None
            return value

        outcome = _outcome(self.terms[index].label, call)
        return None if undecided else outcome

    def combine(self, item: Item, outcomes: Sequence[Outcome], reading: Reading | None = None) -> Score:
        """The score of an item whose terms came out like this, in the order of the terms."""
        terms = {term.label: outcome.value for term, outcome in zip(self.terms, outcomes, strict=True)}
        total = sum(term.weight * terms[term.label] for term in self.terms)
        reason = next((outcome.error for outcome in outcomes if outcome.error), "")
        if not reason and not math.isfinite(total):
            reason = "the weighted sum of the rewards is not finite"
        accuracy, extracted = math.nan, None
        if self._accuracy is not None:
            value = outcomes[self._accuracy].value
            accuracy = math.nan if math.isnan(value) else float(value == 1.0)
            reading = reading or self.read(item)
            extracted = (reading.text or "") if reading.is_known else None
        return Score(math.nan if reason else total, terms, reason, accuracy, extracted)

    def __call__(self, item: Item) -> Score:
        """The score of one item, computed here and now; after `load`."""
        reading = self.read(item)
        return self.combine(item, [self.compute(index, item, reading) for index in range(len(self.terms))], reading)


def _outcome(label: str, call: Callable[[], Any]) -> Outcome:
    started = time.perf_counter()
    outcome = _untimed(label, call)
    return Outcome(outcome.value, outcome.error, time.perf_counter() - started)


def _untimed(label: str, call: Callable[[], Any]) -> Outcome:
    try:
        value = call()
    except KeyboardInterrupt:
        raise
    except Unscorable as reason:
        return Outcome(math.nan, _clip(f"reward '{label}': {reason}"))
    except BaseException as error:
        return Outcome(math.nan, _clip(f"reward '{label}' raised {type(error).__name__}: {_text(error)}"))
    return _number(label, value)


def _number(label: str, value: Any) -> Outcome:
    """Any real number counts, of numpy or torch too; text that spells a number does not."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except Exception:
        number = math.nan
    if math.isfinite(number):
        return Outcome(number)
    is_plain = value is None or type(value) is float
    shown = str(value) if is_plain else "text" if isinstance(value, str) else f"a value of type {type(value).__name__}"
    return Outcome(math.nan, f"reward '{label}' returned {shown}, not a finite number")


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error)[:MAX_MESSAGE].split())
    except Exception:
        return "(no message)"


def _clip(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
