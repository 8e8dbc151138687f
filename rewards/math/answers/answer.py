"""An answer after parsing."""

from dataclasses import dataclass

from volley.rewards.math.expressions import compare
from volley.rewards.math.expressions.tree import Node

DEGREE = "degree"


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer: a formula with its unit, words, a choice, a time of day, or a numeral with a base.

    An answer may be several of these: `ab` may be words or a product, `5:12` a time or a ratio.
    """

    tree: Node | None = None
    """The formula, without the parts below. None if the answer is not a formula."""
    unit: str = ""
    """The unit after or before a number, with its power (`cm^2`). Known units have their standard name."""
    is_percent: bool = False
    """Whether the answer has a percent sign, which `tree` leaves out."""
    words: str = ""
    """The words in lower case."""
    choice: str = ""
    """The letter of a multiple-choice answer."""
    clock: tuple[int, str] | None = None
    """The minutes since midnight; and "a", "p", "24", or "" if it may be either half of the day."""
    digits: str = ""
    """The digits of a numeral with a base."""
    base: int = 0
    """The base of such a numeral."""

    @property
    def is_formula(self) -> bool:
        """Whether the answer is a formula with or without a unit, and nothing else."""
        return self.tree is not None and not (self.words or self.choice or self.clock or self.base)

    @property
    def is_readable(self) -> bool:
        """Whether the answer says anything. A formula must have a value."""
        is_other = self.words or self.choice or self.clock or self.base
        return bool(is_other) or (self.tree is not None and compare.has_value(self.tree))
