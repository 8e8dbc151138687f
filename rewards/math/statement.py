"""What a sentence states as the answer, and whether it takes it back.

A statement stands behind a mark such as `answer is`; display mathematics is read as a whole, over its lines. "Not 73",
"I don't think it is 73", "73 is wrong" and "73? No," take an answer back; "73 or 74" states both. Only what governs the
answer counts: a bounded piece of text just before and just after it.
"""

import re

from volley.rewards.math.answers.equality import equal_answers
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import parse_answer

MAX_BEFORE = 160
MAX_AFTER = 100
MAX_CONCLUSION = 600
MAX_OR = 64

_BE = r"(?:would|must|should|will|has to|have to|turns? out to|ought to|can only) be"
# What `should be in lowest terms` says is no answer.
_FORM = r"(?!\s+(?:in|given|written|expressed|rounded|simplified|reduced|left|stated|as|an?)\b)"
ANCHOR = re.compile(
    r"\banswers?\b[^.\n:=<>]{0,40}?"
    rf"(?:\bis\b|\bare\b|\b{_BE}\b{_FORM}|\bequals?\b|\bcomes (?:out )?to\b|=|:)[\s*_:]{{0,8}}"
    r"|^[ \t]{0,8}A[ \t]?:[ \t]*|^[ \t*_#]{0,8}Ans[ \t]?[:=.][\s*_]{0,8}"
    r"|^[ \t*_#]{0,8}(?:(?:the|my) )?(?:final )?answer(?:[ \t]{1,8}|[ \t*_]{0,8}\n\s{0,8})(?=\$|\\[(\[])",
    re.IGNORECASE | re.MULTILINE,
)
_LEAD = re.compile(
    r"(?:thus|therefore|then|hence|so|simply|just|indeed|clearly|given(?: below| by| as)?|as follows|(?:the )?following"
    r"|found to be|equal to|(?:the )?(?:final )?answer\s*(?=\n|\*|:))\b[\s:,*_]*|[:\s]+",
    re.IGNORECASE,
)
# "Final answer: the largest n is 34".
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

_OPENING = r"[\s$*_:(\\\[\"“]{0,12}$"
_CLOSING = r"[\s$*_)\\\]}\"”]{0,12}"
_NOT_THIS = re.compile(
    r"(?:(?<!\bor )\b(?:can)?not|\b(?:never|neither|nor|anything but|rather than|instead of)|n['’]t)"
    r"(?:\s+(?:be|been|equal|equals|to|simply|actually|exactly|really|at|all|the|answer|final|correct|right))*"
    + _OPENING,
    re.IGNORECASE,
)
# Of each denial, a part that costs little to look for.
_DENYING_BEFORE = (
    *("not", "nor", "n't", "n’t", "never", "neither", "anything but", "than", "instead", "doubt"),
    *("false", "wrong", "incorrect", "untrue", "impossible", "unlikely"),
)
_DENYING_AFTER = ("no", "n't", "n’t", "wrong", "incorrect", "false", "mistake")
_GAP = r"(?:(?!\b(?:so|therefore|thus|hence|but|because|since|and|we|get|gives?)\b)[^,;.:\n!?]){0,50}"
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
_OR = r"(?:or|and/or|\\text\s?\{\s?or\s?\})"
_OR_AFTER = re.compile(
    rf"{_CLOSING},?\s*{_OR}\s*(?:(?:maybe|perhaps|possibly|even|else|is it|it is|it['’]s)\s+)?"
    rf"[$(*\\]{{0,4}}({_NUMBER})(?![\w^])",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(rf"(?<![\w.,^/{{}}])({_NUMBER})[\s$*)]{{0,6}},?\s*{_OR}{_OPENING}", re.IGNORECASE)
_IS_WORDS = re.compile(r"[\s(]*[A-Za-z][A-Za-z\s]*[)\s.]*")


def answer_in_context(text: str, start: int, end: int, content: str) -> str | None:
    """The answer that stands at `text[start:end]`, read as `content`: with the other one where the text says "or"; None
    where it takes the answer back."""
    before, after = text[max(0, start - MAX_BEFORE) : start], text[end : end + MAX_AFTER]
    if _has(before, _DENYING_BEFORE) and (_NOT_THIS.search(before) or _NOT_THAT.search(before)):
        return None
    # "Statement (B) is wrong" is the answer to another question.
    if _has(after, _DENYING_AFTER) and _TAKEN_BACK.match(after) and not _IS_WORDS.fullmatch(content):
        return None
    found = [_OR_AFTER.match(after), _OR_BEFORE.search(before[-MAX_OR:]) if "or" in before[-MAX_OR:].lower() else None]
    others = [match[1] for match in found if match]
    if others:
        answer = parse_answer(normalize(content))
        others = [other for other in others if not equal_answers(answer, parse_answer(normalize(other)))]
    return ", ".join([content, *others])


def _has(text: str, words: tuple[str, ...]) -> bool:
    text = text.lower()
    for word in words:  # noqa: SIM110 - a generator takes three times as long
        if word in text:
            return True
    return False


def read_sentence(text: str, start: int) -> tuple[str, int]:
    """What a sentence states that begins at `start`, behind its anchor, and the index of its end."""
    start, stated = _skip_lead_in(text, start), ""
    if display := _DISPLAY.match(text, start):
        start, stated = display.end(), " ".join(display[0].split())
    line_end = text.find("\n", start)
    line = text[start:] if line_end < 0 else text[start:line_end]
    sentence = _END.split(line, maxsplit=1)[0]
    return stated + _BOLD.sub("", sentence), start + len(sentence)


def final_conclusion(text: str) -> str | None:
    """The formula that a response ends with as its conclusion, behind "is", "that", "therefore" or a colon; or the
    number that a last sentence with "therefore" or the like ends with. None for a text that does not end so."""
    tail = text.strip()[-MAX_CONCLUSION:]
    found = next((match for pattern in _CONCLUSIONS if (match := pattern.search(tail))), None)
    return answer_in_context(tail, found.start(1), found.end(1), " ".join(found[1].split())) if found else None


def read_first_line(text: str, start: int) -> tuple[str, int]:
    """The first line behind `start` with anything on it, with all lines of a display, and the index of its end."""
    start, stated = _skip_lead_in(text, start, is_sentence=False), ""
    if display := _DISPLAY.match(text, start):
        start, stated = display.end(), " ".join(display[0].split())
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    return stated + text[start:line_end], line_end


def _skip_lead_in(text: str, start: int, is_sentence: bool = True) -> int:
    """Where the answer begins: behind what only leads to it."""
    for _ in range(4):
        found = _LEAD.match(text, start) or (_SUBJECT.match(text, start) if is_sentence else None)
        if not found:
            break
        start = found.end()
    return start
