"""The weighted sum of a run's rewards, as a pure function of one item.

A term that raises, or returns anything but a finite number, makes its item unscorable with a reason. A failure never
counts as 0. The values of the other terms are kept for the metrics.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome, Unscorable
from volley.rewards.math.expressions.limits import TimeLimitError, time_limit
from volley.rewards.rubric.loading import check_name, load_reward
from volley.rewards.rubric.registry import BUILT_IN, BuiltIn
from volley.rewards.rubric.signature import bind, check_built_in, check_reward
from volley.rollout.errors import ConfigError
from volley.rollout.types import Score

MAX_MESSAGE = 200
QUICK_S = 0.1
"""The time that the caller may spend on one quick term before a scoring process has to compute it."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer that the run's verifier finds in a response."""

    text: str | None = None
    """The answer; None if the response has none."""
    is_known: bool = True
    """False if no verifier extracts answers, or if extracting takes too long."""
    seconds: float = field(default=0.0, compare=False)
    """The time that the extraction took."""


class Rubric:
    """The plain terms of a run. Creating a rubric loads no user code; `load` does.

    Raises ConfigError for duplicate labels or accuracy flags, RewardError for unknown built-in rewards and for wrong
    options of known ones.
    """

    def __init__(self, terms: Sequence[RewardConfig]) -> None:
        labels = [term.label for term in terms]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(f"rewards: duplicate label '{label}'; give one of the terms another label.")
        flagged = [index for index, term in enumerate(terms) if term.accuracy]
        if len(flagged) > 1:
            raise ConfigError("rewards: more than one term has accuracy: true; only one can decide correctness.")
        for term in terms:
            check_name(term.name)
            if term.name in BUILT_IN:
                check_built_in(term.name, term.options)
        by_default = [index for index, term in enumerate(terms) if term.name == "math"]
        self.terms = tuple(terms)
        self._built_in = [BUILT_IN.get(term.name) for term in terms]
        self._quick = [
            bind(each.quick, term.options) if each else None for each, term in zip(self._built_in, terms, strict=True)
        ]
        self._functions: list[Callable[[Item], Any] | None] = [None] * len(terms)
        # The verifier: the term that decides correctness, and its functions if it is built in.
        self._accuracy = next(iter(flagged or by_default), None)
        verifier = None if self._accuracy is None else self._built_in[self._accuracy]
        options = {} if self._accuracy is None else self.terms[self._accuracy].options
        self._extract = bind(verifier.extract_answer, options) if verifier and verifier.extract_answer else None
        self._grade = _bind_grading(verifier, options)

    @property
    def needs_processes(self) -> bool:
        """Whether some item may need a scoring process."""
        return not all(each and each.always_quick for each in self._built_in)

    @property
    def user_terms(self) -> list[RewardConfig]:
        """The terms that are user functions."""
        return [term for term in self.terms if ":" in term.name]

    def load(self, columns: Collection[str] | None = None, announce: Callable[[str], None] = lambda name: None) -> None:
        """Import every function and check that it can be called. Raises RewardError.

        announce: called with each name before its import.
        """
        for index, term in enumerate(self.terms):
            announce(term.name)
            function = load_reward(term.name)
            check_reward(function, columns, term.name, term.options)
            self._functions[index] = bind(function, term.options)

    def extract(self, item: Item) -> Extraction:
        """Extract the response's answer once, for all terms and for the score. Never raises."""
        if self._extract is None:
            return Extraction(is_known=False)
        started = time.perf_counter()
        try:
            with time_limit(QUICK_S):
                text = self._extract(item)
        except Exception:
            return Extraction(is_known=False)
        return Extraction(text, seconds=time.perf_counter() - started)

    def needs_response(self, terms: Sequence[int], extraction: Extraction) -> bool:
        """Whether these terms need the whole response, not only the extracted answer."""
        return list(terms) != [self._accuracy] or self._grade is None or not extraction.is_known

    def compute(self, index: int, item: Item, extraction: Extraction | None = None) -> Outcome:
        """Compute one term, from the extracted answer alone if that is enough. Requires `load`.

        Never raises, except KeyboardInterrupt.
        """
        if extraction and self._grade and not self.needs_response([index], extraction):
            return _outcome(self.terms[index].label, partial(self._grade[1], item, extraction.text))
        function = self._functions[index]
        assert function is not None, "call Rubric.load first"
        return _outcome(self.terms[index].label, partial(function, item))

    def compute_quick(self, item: Item, extraction: Extraction | None = None) -> list[Outcome | None]:
        """Compute the terms that take microseconds and run no user code; None for the others."""
        extraction = extraction or self.extract(item)
        return [self._compute_quick(index, item, extraction) for index in range(len(self.terms))]

    def _compute_quick(self, index: int, item: Item, extraction: Extraction) -> Outcome | None:
        if self._grade and index == self._accuracy:
            function = partial(self._grade[0], item, extraction.text) if extraction.is_known else None
        else:
            function = partial(quick, item) if (quick := self._quick[index]) else None
        if function is None:
            return None
        undecided = False

        def call() -> Any:
            nonlocal undecided
            try:
                with time_limit(QUICK_S):
                    value = function()
            except TimeLimitError:
                value = None
            undecided = value is None
            return value

        outcome = _outcome(self.terms[index].label, call)
        return None if undecided else outcome

    def combine(self, item: Item, outcomes: Sequence[Outcome], extraction: Extraction | None = None) -> Score:
        """The score of an item. outcomes: one per term, in order."""
        terms = {term.label: outcome.value for term, outcome in zip(self.terms, outcomes, strict=True)}
        total = sum(term.weight * terms[term.label] for term in self.terms)
        reason = next((outcome.error for outcome in outcomes if outcome.error), "")
        if not reason and not math.isfinite(total):
            reason = "the weighted sum of the rewards is not finite"
        accuracy, extracted = math.nan, None
        if self._accuracy is not None:
            value = outcomes[self._accuracy].value
            accuracy = math.nan if math.isnan(value) else float(value == 1.0)
            extraction = extraction or self.extract(item)
            extracted = (extraction.text or "") if extraction.is_known else None
        return Score(math.nan if reason else total, terms, reason, accuracy, extracted)

    def __call__(self, item: Item) -> Score:
        """Compute the score of one item in this process. Requires `load`."""
        extraction = self.extract(item)
        outcomes = [self.compute(index, item, extraction) for index in range(len(self.terms))]
        return self.combine(item, outcomes, extraction)


def _bind_grading(
    verifier: BuiltIn | None, options: dict[str, Any]
) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The quick and the full function that grade an extracted answer; None if the verifier has none."""
    if verifier is None or verifier.grade_extracted is None or verifier.quick_grade_extracted is None:
        return None
    return bind(verifier.quick_grade_extracted, options), bind(verifier.grade_extracted, options)


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
        return Outcome(math.nan, _shorten(f"reward '{label}': {reason}"))
    except BaseException as error:
        return Outcome(math.nan, _shorten(f"reward '{label}' raised {type(error).__name__}: {_message_of(error)}"))
    return _number(label, value)


def _number(label: str, value: Any) -> Outcome:
    """Accept any real number, also of numpy or torch, but not text that spells a number."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except Exception:
        number = math.nan
    if math.isfinite(number):
        return Outcome(number)
    is_plain = value is None or type(value) is float
    shown = str(value) if is_plain else "text" if isinstance(value, str) else f"a value of type {type(value).__name__}"
    return Outcome(math.nan, f"reward '{label}' returned {shown}, not a finite number")


def _message_of(error: BaseException) -> str:
    try:
        return " ".join(str(error)[:MAX_MESSAGE].split())
    except Exception:
        return "(no message)"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
