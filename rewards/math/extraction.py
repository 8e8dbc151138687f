"""Where in a response its answer stands.

In this order: the last box; the last of `<answer>` tags, `####`, `answer is ...`, `A: ...`; the formula that the
response ends with as its conclusion, or the number of a last sentence with "therefore"; a response of one short line,
as a whole; a last line or display that is nothing but a number. A sentence that merely contains a number is no answer:
to take the last number anywhere would reward a model for listing numbers.
"""

import re

from volley.rewards.math.answers.equality import equal_answers
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import is_number, parse_answer
from volley.rewards.math.hidden_text import find_closing_brace, remove_hidden_text
from volley.rewards.math.statement import ANCHOR, answer_in_context, final_conclusion, read_first_line, read_sentence
from volley.rewards.think_format import after_thinking

MAX_TAIL = 65_536
MAX_ANSWER = 256
MAX_BARE = 64
MAX_BOXES = 8
MAX_TAGS = 8
MAX_WORDS = 3
MAX_GAP = 40

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{)?")
# A second box behind "or" is a second answer.
_SPACE = r"(?:[\s$]|\\(?:q?quad\b|[;,: ]))*"
_BETWEEN_BOXES = re.compile(rf"{_SPACE}(?:,?{_SPACE}(?:and|or|\\text\s*\{{\s*(?:and|or)\s*\}})|[,;]){_SPACE}")
_LAST_DISPLAY = re.compile(r"(?:\$\$[^$]{1,128}\$\$|\\\[(?:(?!\\\[)(?s:.)){1,128}\\\])\Z")
_QUOTES = (('"', '"'), ("“", "”"))
# "I don't know" is no answer, "no solution" is one.
_TALK = re.compile(r"(?:i|we|you|they|he|she|it|this|that|these|there|here|sorry|please|let|unknown)\b", re.IGNORECASE)


def extract(response: str, truncated: bool = False) -> str | None:
    """The answer that a response gives, as it spells it; None where it gives none, and for what is no text.

    Read is what follows the last `</think>`, or everything where no thinking is marked; thinking that is still open
    holds no answer. A box that is cut off or empty, `<answer>` tags that contradict each other, and an answer that its
    sentence takes back give none, and nothing else is taken in their place. truncated: the response ended at the token
    limit, so an answer that nothing closes may be cut off: the last line counts for boxes and closed tags only. Looks
    at the last `MAX_TAIL` characters.
    """
    text = after_thinking(response) if isinstance(response, str) else None
    if text is None:
        return None
    text = remove_hidden_text(text[-MAX_TAIL:], MAX_ANSWER)
    boxes = list(_BOX.finditer(text))
    found = _boxed(text, boxes) if boxes else _unboxed(text, truncated)
    found = _unquoted(found.strip()) if found else ""
    return found if 0 < len(found) <= MAX_ANSWER else None


def _unquoted(text: str) -> str:
    """The text without marks of bold type, code and quotation around it."""
    if "**" not in (unmarked := text.strip("*_`").strip()):
        text = unmarked
    bare = text.removesuffix(".")
    for left, right in _QUOTES:
        if len(bare) > 2 and bare[0] == left and bare[-1] == right and left not in bare[1:-1]:
            return bare[1:-1].strip()
    return text


def _boxed(text: str, boxes: list[re.Match[str]]) -> str | None:
    """The content of the last box; of several, where only a comma, "and" or "or" is between them, joined by commas."""
    contents: list[str] = []
    next_start = last_end = 0
    for box in reversed(boxes[-MAX_BOXES:]):
        end = find_closing_brace(text, box.end(), MAX_ANSWER) if box[1] else -1
        if contents and (end < 0 or not _joins(text[end + 1 : next_start])):
            break
        content = text[box.end() : end].strip() if end >= 0 else ""
        if not content:
            return None
        contents.insert(0, content)
        next_start = box.start()
        last_end = last_end or end + 1
    return answer_in_context(text, next_start, last_end, ", ".join(contents))


def _joins(gap: str) -> bool:
    return len(gap) <= MAX_GAP and _BETWEEN_BOXES.fullmatch(gap) is not None


def _unboxed(text: str, truncated: bool) -> str | None:
    """The answer behind the last of the marks, or the text itself where there is none."""
    whole = text.rpartition("\n")[0] if truncated else text
    *_, last_anchor = [None, *ANCHOR.finditer(whole)]
    tag_place, hash_place = text.rfind("<answer>"), whole.rfind("####")
    anchor_place = last_anchor.end() if last_anchor else -1
    if tag_place >= 0 and "</answer>" not in text[tag_place : max(hash_place, anchor_place)]:
        return _tagged(text, tag_place, truncated)  # any other mark stands inside
    last = max(tag_place, hash_place, anchor_place)
    if last < 0:
        return (None if truncated else final_conclusion(whole)) or _bare(whole)
    if last == tag_place:
        return _tagged(text, tag_place, truncated)
    if last == hash_place:
        start = hash_place + 4
        content, end = read_first_line(whole, start)
    else:
        start = anchor_place
        content, end = read_sentence(whole, start)
    return answer_in_context(whole, start, end, content)


def _tagged(text: str, place: int, truncated: bool) -> str | None:
    """What stands in the last `<answer>`; None if an earlier one says something else. The last may lack its end tag,
    which sampling removes where it is the stop string."""
    parts = [piece.partition("</answer>") for piece in text.split("<answer>")[1:]]
    if truncated and not parts[-1][1]:
        return None
    contents = [_tag_content(content) for content, _, _ in parts[-MAX_TAGS:]]
    last = parse_answer(normalize(contents[-1]))
    if not all(equal_answers(last, parse_answer(spelling)) for spelling in set(map(normalize, contents))):
        return None
    end = len(text) - len(parts[-1][2])
    return answer_in_context(text, place, end, contents[-1])


def _tag_content(text: str) -> str:
    """What a tag holds, or what its sentence states."""
    anchor = ANCHOR.search(text[:MAX_ANSWER])
    if anchor is None or "\n" in text[: anchor.start()].strip():
        return _unquoted(text.strip())
    content, end = read_sentence(text, anchor.end())
    return _unquoted((answer_in_context(text, anchor.end(), end, content) or "").strip())


def _bare(text: str) -> str | None:
    """A response of one short line that can be read, of at most `MAX_WORDS` words where it is words; or a number that
    the response ends with, on a line or in a display of its own."""
    stripped = text.strip()
    display = _LAST_DISPLAY.search(stripped[-MAX_ANSWER:])
    line = display[0] if display else stripped.rpartition("\n")[2].strip()
    if len(line) > MAX_BARE and not display:
        return None
    form = normalize(line)
    if line != stripped:
        return answer_in_context(stripped, len(stripped) - len(line), len(stripped), line) if is_number(form) else None
    answer = parse_answer(form)
    if answer.tree is None and answer.words and (len(form.split()) > MAX_WORDS or _TALK.match(form)):
        return line if form[0].isdigit() else None
    return line if answer.tree or answer.words or answer.choice or answer.clock or answer.base else None
