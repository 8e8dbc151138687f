"""Removes the parts of a response that LaTeX does not print: comments and phantoms.

A `%` starts a comment at the start of a line, after a double backslash, and after punctuation or `&` with a space.
Everywhere else it is a percent sign: after a number, a bracket, a symbol or a word, as in "a rate of x % gives". In
doubt it is a percent sign, because removing a box would lose a right answer.
"""

import re

_COMMENT = re.compile(
    r"(?m:^[ \t]*|(?<=\\\\)[ \t]*|(?<=[.,;:!?&])[ \t]+)%[^\n]*|<!--(?s:.*?)(?:-->|\Z)"
    r"|\\iffalse\b(?s:.*?)(?:\\fi\b|\Z)|\\begin\s*\{comment\}(?s:.*?)(?:\\end\s*\{comment\}|\Z)"
)
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{")


def remove_hidden_text(text: str, max_inside: int) -> str:
    """Return a text without its comments and phantoms.

    A phantom may contain `max_inside` characters. One that is not closed within them hides the rest of the text.
    """
    if "%" in text or "<!--" in text or "\\iffalse" in text or "{comment}" in text:
        text = _COMMENT.sub("", text)
    while phantom := _PHANTOM.search(text):
        end = find_closing_brace(text, phantom.end(), max_inside)
        text = text[: phantom.start()] + (text[end + 1 :] if end >= 0 else "")
    return text


def find_closing_brace(text: str, start: int, max_inside: int) -> int:
    """Return the index of the brace that closes the one before `start`.

    -1 if it is not within `max_inside` characters.
    """
    depth, position, limit = 1, start, min(len(text), start + max_inside + 1)
    while position < limit:
        if text[position] == "\\":
            position += 1
        elif text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1
