"""Finds the answer that a sentence states.

A statement follows a phrase such as `answer is`, the anchor. Display mathematics is taken as a whole, over its lines.
`retraction` then decides whether the text around the statement takes it back.
"""

import re

from volley.rewards.math.retraction import answer_in_context

MAX_CONCLUSION = 600
"""Characters at the end of a response that may be its conclusion."""

_BE = r"(?:would|must|should|will|has to|have to|turns? out to|ought to|can only) be"
# "The answer should be in lowest terms" states a form, not an answer.
_FORM = r"(?!\s+(?:in|given|written|expressed|rounded|simplified|reduced|left|stated|as|an?)\b)"
ANCHOR = re.compile(
    r"\banswers?\b[^.\n:=<>]{0,40}?"
    rf"(?:\bis\b|\bare\b|\b{_BE}\b{_FORM}|\bequals?\b|\bcomes (?:out )?to\b|=|:)[\s*_:]{{0,8}}"
    r"|^[ \t]{0,8}A[ \t]?:[ \t]*|^[ \t*_#]{0,8}Ans[ \t]?[:=.][\s*_]{0,8}"
    r"|^[ \t*_#]{0,8}(?:(?:the|my) )?(?:final )?answer(?:[ \t]{1,8}|[ \t*_]{0,8}\n\s{0,8})(?=\$|\\[(\[])",
    re.IGNORECASE | re.MULTILINE,
)
"""The phrase that an answer follows."""
_LEAD = re.compile(
    r"(?:thus|therefore|then|hence|so|simply|just|indeed|clearly|given(?: below| by| as)?|as follows|(?:the )?following"
    r"|found to be|equal to|(?:the )?(?:final )?answer\s*(?=\n|\*|:))\b[\s:,*_]*|[:\s]+",
    re.IGNORECASE,
)
# A subject that is repeated after the anchor: "Final answer: the largest n is 34".
_SUBJECT = re.compile(
    r"(?:the|its?|there|so|thus|hence|therefore)\b[^.=;\n]{0,120}?\b(?:is|are|equals)\b[\s*:]*", re.IGNORECASE
)
_DISPLAY = re.compile(r"\$\$[^$]{1,256}\$\$|\\\[(?s:.{1,256}?)\\\]")
_END = re.compile(
    r"\.(?=\s|$|\*)|;(?=\s|$)|,? (?:because|since|so|which|where) |(?<=[0-9}]) of (?:an?|the) |(?<=[0-9})$%]),? \(?not "
)
_RESULT = r"(?:\s+is\s+(?:the|our|my)\s+(?:\w+\s+)?(?:answer|solution|result|value))?[.!\s]*\Z"
_CONCLUSIONS = (
    re.compile(
        r"(?:\b(?:is|are|equals?|gives?|get|obtain|have|find|that|therefore|thus|hence|so)\b|[:=])[\s,]{0,8}"
        r"(\$\$[^$]{1,256}\$\$|\\\[(?s:.{1,256}?)\\\]|\$[^$\n]{1,256}\$|\\\(.{1,256}?\\\))" + _RESULT,
        re.IGNORECASE,
    ),
    re.compile(
        r"(?:^|[.!?]\s)(?:therefore|thus|hence|so)\b[^.!?\n]{1,200}?\b(?:is|are|equals)\s+"
        r"([-+]?\$?[0-9][0-9,]{0,80}(?:\.[0-9]{1,80})?(?:/[0-9]{1,80})?%?)[.!]?\Z",
        re.IGNORECASE | re.MULTILINE,
    ),
)
_BOLD = re.compile(r"\*\*(?=\W|$)|(?<!\w)\*\*")


def read_sentence(text: str, start: int) -> tuple[str, int]:
    """Return the statement of a sentence that begins at `start`, after its anchor, and the index of its end."""
    start, stated = _skip_lead_in(text, start), ""
    if display := _DISPLAY.match(text, start):
        start, stated = display.end(), " ".join(display[0].split())
    line_end = text.find("\n", start)
    line = text[start:] if line_end < 0 else text[start:line_end]
    sentence = _END.split(line, maxsplit=1)[0]
    return stated + _BOLD.sub("", sentence), start + len(sentence)


def final_conclusion(text: str) -> str | None:
    """Return the conclusion that a response ends with; None if it does not end with one.

    A conclusion is a formula after "is", "that", "therefore" or a colon, or a number at the end of a last sentence that
    begins with "therefore" or a similar word.
    """
    tail = text.strip()[-MAX_CONCLUSION:]
    match = next((match for pattern in _CONCLUSIONS if (match := pattern.search(tail))), None)
    return answer_in_context(tail, match.start(1), match.end(1), " ".join(match[1].split())) if match else None


def read_first_line(text: str, start: int) -> tuple[str, int]:
    """Return the first line after `start` that is not empty, with all lines of a display, and the index of its end."""
    start, stated = _skip_lead_in(text, start, is_sentence=False), ""
    if display := _DISPLAY.match(text, start):
        start, stated = display.end(), " ".join(display[0].split())
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    return stated + text[start:line_end], line_end


def _skip_lead_in(text: str, start: int, is_sentence: bool = True) -> int:
    """Return the index of the answer itself, after up to four phrases that only lead to it, such as "therefore"."""
    for _ in range(4):
        lead_in = _LEAD.match(text, start) or (_SUBJECT.match(text, start) if is_sentence else None)
        if not lead_in:
            break
        start = lead_in.end()
    return start
