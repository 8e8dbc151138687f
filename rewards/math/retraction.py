"""Whether the text around a stated answer takes it back or adds an alternative.

"Not 73", "I don't think it is 73", "73 is wrong" and "73? No," take the answer back. "73 or 74" states two answers.
Only a bounded piece of text just before and just after the answer is searched.
"""

import re

from volley.rewards.math.answers.equality import equal_answers
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer

MAX_BEFORE = 160
"""Characters before an answer that may take it back."""
MAX_AFTER = 100
"""Characters after an answer that may take it back or add an alternative."""
MAX_OR = 64
"""Characters before an answer that may add an alternative."""

_OPENING = r"[\s$*_:(\\\[\"“]{0,12}$"
_CLOSING = r"[\s$*_)\\\]}\"”]{0,12}"
# Directly before the answer: "not 73", "rather than 73".
_NOT_THIS = re.compile(
    r"(?:(?<!\bor )\b(?:can)?not|\b(?:never|neither|nor|anything but|rather than|instead of)|n['’]t)"
    r"(?:\s+(?:be|been|equal|equals|to|simply|actually|exactly|really|at|all|the|answer|final|correct|right))*"
    + _OPENING,
    re.IGNORECASE,
)
# Words of which every denial contains one. Searching them first is cheap.
_DENYING_BEFORE = (
    *("not", "nor", "n't", "n’t", "never", "neither", "anything but", "than", "instead", "doubt"),
    *("false", "wrong", "incorrect", "untrue", "impossible", "unlikely"),
)
_DENYING_AFTER = ("no", "n't", "n’t", "wrong", "incorrect", "false", "mistake")
_GAP = r"(?:(?!\b(?:so|therefore|thus|hence|but|because|since|and|we|get|gives?)\b)[^,;.:\n!?]){0,50}"
# Before the answer, with a gap: "I don't think it is 73", "it is false that there are 73".
_NOT_THAT = re.compile(
    r"(?:\b(?:do|does|did|can|could|would)(?:\s?not|n['’]t)\s+(?:\w+\s+)?(?:think|believe|agree|say|claim|conclude)\b|\bdoubt\b"
    r"|\b(?:false|wrong|incorrect|untrue|impossible|unlikely|not\s+(?:true|correct|right|the case|possible|likely))"
    r"\s+(?:to\s+\w+\s+)?that\b)" + _GAP + _OPENING,
    re.IGNORECASE,
)
_ANSWER = r"(?:right|correct|true|valid|it\b|(?:the|an?|my)\s+(?:\w+\s+)?(?:answer|solution|result))"
_WRONG = (
    r"(?:(?:clearly|definitely|obviously|certainly|actually|probably|simply|surely)\s+)?"
    r"(?:(?:the\s+|an?\s+)?(?:wrong|incorrect|false|mistaken)(?:\s+(?:answer|solution|result))?"
    rf"|a mistake|not\s+{_ANSWER})"
)
# Directly after the answer: "73? No,", "73, wait, that's wrong".
_TAKEN_BACK = re.compile(
    rf"{_CLOSING}[.,;:!?-]{{0,3}}{_CLOSING}(?:(?:wait|hmm+|oh|sorry)\W{{1,3}}){{0,2}}"
    r"(?:no(?:[,!:;]|\.(?!\s*(?:of\b|[0-9])))|nope\b"
    r"|(?:(?:but\s+)?(?:that|this|it|which)(?:\s+answer)?(?=['’\s]))?\s?"
    rf"(?:(?:['’]s|is|was|would be|must be|seems|looks)\s+{_WRONG}"
    rf"|(?:isn['’]t|wasn['’]t|cannot be|can['’]t be)\s+{_ANSWER})"
    r"(?=\s*(?:[.,;:!?)]|$|(?:because|since|as|so|and|but)\b)))",
    re.IGNORECASE,
)
_NUMBER = (
    r"[-+]?\\?\$?(?:\\[dt]?frac\s?\{[^{}]{1,20}\}\s?\{[^{}]{1,20}\}"
    r"|[0-9][0-9,]{0,20}(?:\.[0-9]{1,20})?(?:/[0-9]{1,20})?)(?:\\?%)?"
)
# An alternative after or before the answer: "73 or 74".
_OR = r"(?:or|and/or|\\text\s?\{\s?or\s?\})"
_OR_AFTER = re.compile(
    rf"{_CLOSING},?\s*{_OR}\s*(?:(?:maybe|perhaps|possibly|even|else|is it|it is|it['’]s)\s+)?"
    rf"[$(*\\]{{0,4}}({_NUMBER})(?![\w^])",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(rf"(?<![\w.,^/{{}}])({_NUMBER})[\s$*)]{{0,6}},?\s*{_OR}{_OPENING}", re.IGNORECASE)
_IS_WORDS = re.compile(r"[\s(]*[A-Za-z][A-Za-z\s]*[)\s.]*")


def answer_in_context(text: str, start: int, end: int, content: str) -> str | None:
    """Return the answer stated at `text[start:end]`, unless the text around it takes it back.

    Args:
        text: the visible response.
        start: where the statement begins.
        end: where it ends.
        content: the answer as it was extracted from the statement.

    Returns:
        The content, with the alternatives that the text adds with "or". None if the text takes the answer back.
    """
    before, after = text[max(0, start - MAX_BEFORE) : start], text[end : end + MAX_AFTER]
    if _contains_any(before, _DENYING_BEFORE) and (_NOT_THIS.search(before) or _NOT_THAT.search(before)):
        return None
    # Words are not checked: "statement (B) is wrong" does not take the answer (B) back.
    if _contains_any(after, _DENYING_AFTER) and _TAKEN_BACK.match(after) and not _IS_WORDS.fullmatch(content):
        return None
    last = before[-MAX_OR:]
    alternatives = [_OR_AFTER.match(after), _OR_BEFORE.search(last) if "or" in last.lower() else None]
    others = [match[1] for match in alternatives if match]
    if others:
        answer = parse_answer(normalize(content))
        others = [other for other in others if not equal_answers(answer, parse_answer(normalize(other)))]
    return ", ".join([content, *others])


def _contains_any(text: str, words: tuple[str, ...]) -> bool:
    text = text.lower()
    for word in words:  # noqa: SIM110 - any() with a generator takes three times as long
        if word in text:
            return True
    return False
