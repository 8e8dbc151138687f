"""A response as it is seen on paper: comments and phantoms show nothing.

A `%` starts a comment at the start of a line, after a doubled backslash, and after a space behind punctuation or `&`,
where no amount stands in front of it. Anywhere else it is a percent sign: behind a number, a bracket, a symbol or a
word, as in "a rate of x % gives". In doubt it is one, because a box that is lost costs a good answer.
"""

import re

_COMMENT = re.compile(
    r"(?m:^[ \t]*|(?<=\\\\)[ \t]*|(?<=[.,;:!?&])[ \t]+)%[^\n]*|<!--(?s:.*?)(?:-->|\Z)"
    r"|\\iffalse\b(?s:.*?)(?:\\fi\b|\Z)|\\begin\s*\{comment\}(?s:.*?)(?:\\end\s*\{comment\}|\Z)"
)
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{")


def remove_hidden_text(text: str, max_inside: int) -> str:
    """The text without its comments and phantoms. max_inside: characters that a phantom may hold; one that nothing
    closes within them hides all that follows."""
    if "%" in text or "<!--" in text or "\\iffalse" in text or "{comment}" in text:
        text = _COMMENT.sub("", text)
    while phantom := _PHANTOM.search(text):
        end = find_closing_brace(text, phantom.end(), max_inside)
        text = text[: phantom.start()] + (text[end + 1 :] if end >= 0 else "")
    return text


def find_closing_brace(text: str, start: int, max_inside: int) -> int:
    """Index of the brace that closes the one before `start`; -1 if none does within `max_inside` characters."""
    depth, place, limit = 1, start, min(len(text), start + max_inside + 1)
    while place < limit:
        if text[place] == "\\":
            place += 1
        elif text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return -1
