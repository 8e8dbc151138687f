"""Splits the text of a formula into tokens, one at a time."""

import re

from volley.rewards.math.expressions.vocabulary import WORDS

MAX_NESTING = 24

_SYNONYMS = {"\\lor": "or", "\\vee": "or", "\\land": "and", "\\wedge": "and"}
_TOKEN = re.compile(
    r"\s*(?:([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3}(?![0-9.]))?|\.[0-9]+|\\(?:[A-Za-z]+|.)|[A-Za-z]+"
    r"|<=|>=|!=(?!=)|==|[-+*/^_=<>()\[\]{}|,;:!%&'])|$)"
)
_GROUPED_THOUSANDS = re.compile(r"\s*([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)(?![0-9]|,[0-9])")
_LEADING_WORD = re.compile("(?:" + "|".join(sorted(WORDS - {"or", "and"}, key=len, reverse=True)) + ")")


class NotAFormulaError(Exception):
    """The text is not a formula that the grammar knows, or it exceeds a limit."""


class Tokens:
    """A position in a text, with the next token. Letters are one symbol each unless they spell a known word."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.depth = 0
        self._position = 0
        self._peeked: tuple[str, int] | None = None

    @property
    def position(self) -> int:
        """The index at which the next token is searched."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        self._position = position
        self._peeked = None

    def peek(self) -> str:
        """Return the next token without consuming it; "" at the end."""
        if self._peeked is None:
            self._peeked = self._next()
        return self._peeked[0]

    def _next(self) -> tuple[str, int]:
        """Return the next token and the index of its end."""
        # Inside brackets a comma separates: "(1,234)" is a pair, not a number with grouped thousands.
        match = None if self.depth else _GROUPED_THOUSANDS.match(self.text, self._position)
        match = match or _TOKEN.match(self.text, self._position)
        if match is None:
            raise NotAFormulaError
        token, end = match[1] or "", match.end()
        if token.isalpha() and token not in WORDS:
            if word := _LEADING_WORD.match(token):
                return word[0], end - len(token) + word.end()
            if len(token) > 3:
                raise NotAFormulaError
            return token[0], end - len(token) + 1
        return _SYNONYMS.get(token, token), end

    def take(self) -> str:
        """Consume and return the next token. Raises NotAFormulaError at the end."""
        token = self.peek()
        if token == "":
            raise NotAFormulaError
        assert self._peeked is not None
        self.position = self._peeked[1]
        return token

    def expect(self, *wanted: str) -> str:
        """Consume the next token. Raises NotAFormulaError if it is not one of those wanted."""
        token = self.take()
        if token not in wanted:
            raise NotAFormulaError
        return token

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Match a pattern at the current position, and move behind it if it matches."""
        if match := pattern.match(self.text, self._position):
            self.position = match.end()
        return match

    def enter(self) -> None:
        """Go one level of nesting deeper. Raises NotAFormulaError beyond `MAX_NESTING`."""
        self.depth += 1
        self._peeked = None
        if self.depth > MAX_NESTING:
            raise NotAFormulaError

    def leave(self) -> None:
        """Return from a level of nesting."""
        self.depth -= 1
        self._peeked = None
