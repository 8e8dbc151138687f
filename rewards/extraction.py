"""Where in a response its answer stands.

In this order: the last box; the last of `<answer>` tags, `####`, `answer is ...`, `A: ...`; a response of one short
line, as a whole; a last line that is nothing but a number. A sentence that merely contains a number is no answer: to
take the last number anywhere would reward a model for listing numbers.
"""

import re

from rewards.answer import is_number, read
from rewards.spelling import normal_form
from rewards.think_format import after_thinking
from rewards.verdict import same

MAX_TAIL = 65_536
MAX_ANSWER = 256
MAX_BARE = 64
MAX_BOXES = 8
MAX_TAGS = 8
MAX_GAP = 40

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{)?")
# A second box behind "or" is a second answer.
_SPACE = r"(?:[\s$]|\\(?:q?quad\b|[;,: ]))*"
_BETWEEN_BOXES = re.compile(rf"{_SPACE}(?:,?{_SPACE}(?:and|or|\\text\s*\{{\s*(?:and|or)\s*\}})|[,;]){_SPACE}")
# A comment starts a line or follows a space that does not belong to a percentage.
_COMMENT = re.compile(
    r"(?m:^[ \t]*|(?<=[^\s0-9})$%\\])[ \t]+)%[^\n]*|<!--(?s:.*?)(?:-->|\Z)|\\iffalse\b(?s:.*?)(?:\\fi\b|\Z)"
)
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{")
_ANCHOR = re.compile(
    r"\banswers?\b[^.\n:=<>]{0,40}?(?:\bis\b|\bare\b|=|:)[\s*_:]{0,8}|^[ \t]{0,8}A[ \t]?:[ \t]*"
    r"|^[ \t*]{0,8}(?:final )?answer[ \t]{1,8}(?=\$|\\[(\[])",
    re.IGNORECASE | re.MULTILINE,
)
# "Final answer: the largest n is 34".
_SUBJECT = re.compile(
    r"(?:the|its?|there|so|thus|hence|therefore)\b[^.=]{0,120}?\b(?:is|are|equals)\b[\s*:]*", re.IGNORECASE
)
_END = re.compile(r"\.(?=\s|$|\*)|[;?](?=\s|$)|,? (?:because|since|so|which|where) |(?<=[0-9}]) of (?:an?|the) ")
_BOLD = re.compile(r"\*\*(?=\W|$)|(?<!\w)\*\*")


def extract(response: str, truncated: bool = False) -> str | None:
    """The answer that a response gives, as it spells it; None where it gives none.

    Read is what follows the last `</think>`, or everything where no thinking is marked; thinking that is still open
    holds no answer. A box that is cut off or empty, and `<answer>` tags that contradict each other, give none, and
    nothing else is taken in their place. truncated: the response ended at the token limit, so an answer that nothing
    closes may be cut off: the last line counts for boxes and closed tags only. Looks at the last `MAX_TAIL` characters.
    """
    text = after_thinking(response)
    if text is None:
        return None
    text = _without_comments(text[-MAX_TAIL:])
    boxes = list(_BOX.finditer(text))
    found = _boxed(text, boxes) if boxes else _unboxed(text, truncated)
    found = found.strip() if found else ""
    if "**" not in (unmarked := found.strip("*_`").strip()):
        found = unmarked
    return found if 0 < len(found) <= MAX_ANSWER else None


def _without_comments(text: str) -> str:
    """The text as it is seen on paper: comments and phantoms show nothing."""
    if "%" in text or "<!--" in text or "\\iffalse" in text:
        text = _COMMENT.sub("", text)
    while phantom := _PHANTOM.search(text):
        end = _closing_brace(text, phantom.end())
        text = text[: phantom.start()] + (text[end + 1 :] if end >= 0 else "")
    return text


def _boxed(text: str, boxes: list[re.Match[str]]) -> str | None:
    """The content of the last box; of several, where only a comma, "and" or "or" is between them, joined by commas."""
    contents: list[str] = []
    next_start = 0
    for box in reversed(boxes[-MAX_BOXES:]):
        end = _closing_brace(text, box.end()) if box[1] else -1
        if contents and (end < 0 or not _joins(text[end + 1 : next_start])):
            break
        content = text[box.end() : end].strip() if end >= 0 else ""
        if not content:
            return None
        contents.insert(0, content)
        next_start = box.start()
    return ", ".join(contents)


def _joins(gap: str) -> bool:
    return len(gap) <= MAX_GAP and _BETWEEN_BOXES.fullmatch(gap) is not None


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one before `start`; -1 if none does within an answer's length."""
    depth, place, limit = 1, start, min(len(text), start + MAX_ANSWER + 1)
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


def _unboxed(text: str, truncated: bool) -> str | None:
    """The answer behind the last of the marks, or the text itself where there is none."""
    whole = text.rpartition("\n")[0] if truncated else text
    *_, last_anchor = [None, *_ANCHOR.finditer(whole)]
    tag_place, hash_place = text.rfind("<answer>"), whole.rfind("####")
    anchor_place = last_anchor.start() if last_anchor else -1
    if tag_place >= 0 and "</answer>" not in text[tag_place : max(hash_place, anchor_place)]:
        return _tagged(text, truncated)  # any other mark stands inside
    last = max(tag_place, hash_place, anchor_place)
    if last < 0:
        return _bare(whole)
    if last == tag_place:
        return _tagged(text, truncated)
    if last == hash_place:
        return _first_line(whole[hash_place + 4 :])
    assert last_anchor is not None
    sentence = _END.split(_BOLD.sub("", _first_line(whole[last_anchor.end() :])), maxsplit=1)[0]
    subject = _SUBJECT.match(sentence)
    return sentence[subject.end() :] if subject else sentence


def _tagged(text: str, truncated: bool) -> str | None:
    """What stands in the last `<answer>`; None if an earlier one says something else. The last may lack its end tag,
    which sampling removes where it is the stop string."""
    parts = [piece.partition("</answer>") for piece in text.split("<answer>")[1:]]
    if truncated and not parts[-1][1]:
        return None
    spellings = {normal_form(content) for content, _, _ in parts[-MAX_TAGS:]}
    last = read(normal_form(parts[-1][0]))
    return _behind_anchor(parts[-1][0]) if all(same(last, read(spelling)) for spelling in spellings) else None


def _behind_anchor(text: str) -> str:
    anchor = _ANCHOR.match(text.strip().removeprefix("The ").removeprefix("the "))
    return text if anchor is None else anchor.string[anchor.end() :]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _bare(text: str) -> str | None:
    stripped = text.strip()
    line = stripped.rpartition("\n")[2].strip()
    if len(line) > MAX_BARE:
        return None
    return line if line == stripped or is_number(normal_form(line)) else None
