"""Finds the answer of a response.

The answer is the first of these that the response has:

1. the last box
2. the last of `<answer>` tags, `####`, `answer is ...` and `A: ...`
3. a formula as the conclusion at the end, or a number at the end of a last sentence with "therefore"
4. the whole response, if it is one short line
5. a number that is alone on the last line or in a last display

A sentence that merely contains a number is not an answer. To take the last number of any text would reward a model for
listing numbers.
"""

import re

from volley.rewards.math.answers.equality import equal_answers
from volley.rewards.math.answers.normalization import normalize
from volley.rewards.math.answers.parsing import is_number, parse_answer
from volley.rewards.math.hidden_text import find_closing_brace, remove_hidden_text
from volley.rewards.math.retraction import answer_in_context
from volley.rewards.math.statement import ANCHOR, final_conclusion, read_first_line, read_sentence
from volley.rewards.think_format import after_thinking

MAX_TAIL = 65_536
"""Characters at the end of a response that are searched."""
MAX_ANSWER = 256
"""Characters of an answer."""
MAX_BARE = 64
"""Characters of a line that is the whole response."""
MAX_BOXES = 8
"""Boxes that are joined into one answer."""
MAX_TAGS = 8
"""`<answer>` tags, from the last one, that must agree."""
MAX_WORDS = 3
"""Words of a response that is nothing but words."""
MAX_GAP = 40
"""Characters between two boxes that are joined."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{)?")
# Boxes with only "and", "or" or a comma between them are one answer.
_SPACE = r"(?:[\s$]|\\(?:q?quad\b|[;,: ]))*"
_BETWEEN_BOXES = re.compile(rf"{_SPACE}(?:,?{_SPACE}(?:and|or|\\text\s*\{{\s*(?:and|or)\s*\}})|[,;]){_SPACE}")
_LAST_DISPLAY = re.compile(r"(?:\$\$[^$]{1,128}\$\$|\\\[(?:(?!\\\[)(?s:.)){1,128}\\\])\Z")
_QUOTES = (('"', '"'), ("“", "”"))
# Words that begin a sentence: "I don't know" is not an answer, "no solution" is one.
_TALK = re.compile(r"(?:i|we|you|they|he|she|it|this|that|these|there|here|sorry|please|let|unknown)\b", re.IGNORECASE)


def extract(response: str, truncated: bool = False) -> str | None:
    """Return the answer that a response gives, in its own spelling; None if it gives none or is not text.

    Only the text after the last `</think>` is searched, or all of it if no thinking is marked. Thinking that is still
    open contains no answer. Only the last `MAX_TAIL` characters are searched.

    There is no answer, and no other place is tried, if a box is empty or cut off, if `<answer>` tags contradict each
    other, or if the sentence takes its answer back.

    truncated: whether the response ended at the token limit. Then an answer at its end may be cut off, so in the last
    line only boxes and closed tags count.
    """
    text = after_thinking(response) if isinstance(response, str) else None
    if text is None:
        return None
    text = remove_hidden_text(text[-MAX_TAIL:], MAX_ANSWER)
    boxes = list(_BOX.finditer(text))
    answer = _boxed(text, boxes) if boxes else _unboxed(text, truncated)
    answer = _unquoted(answer.strip()) if answer else ""
    return answer if 0 < len(answer) <= MAX_ANSWER else None


def _unquoted(text: str) -> str:
    """Return a text without the marks of bold type, code and quotation around it."""
    if "**" not in (unmarked := text.strip("*_`").strip()):
        text = unmarked
    bare = text.removesuffix(".")
    for left, right in _QUOTES:
        if len(bare) > 2 and bare[0] == left and bare[-1] == right and left not in bare[1:-1]:
            return bare[1:-1].strip()
    return text


def _boxed(text: str, boxes: list[re.Match[str]]) -> str | None:
    """Return the content of the last box, joined by commas with the boxes before it that belong to it.

    Boxes belong together if only a comma, "and" or "or" is between them.
    """
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
    """Return whether the text between two boxes makes them one answer."""
    return len(gap) <= MAX_GAP and _BETWEEN_BOXES.fullmatch(gap) is not None


def _unboxed(text: str, truncated: bool) -> str | None:
    """Return the answer after the last mark: a tag, `####` or a phrase. Without any, a conclusion or a bare answer."""
    whole = text.rpartition("\n")[0] if truncated else text
    *_, last_anchor = [None, *ANCHOR.finditer(whole)]
    tag_position, hash_position = text.rfind("<answer>"), whole.rfind("####")
    anchor_position = last_anchor.end() if last_anchor else -1
    if tag_position >= 0 and "</answer>" not in text[tag_position : max(hash_position, anchor_position)]:
        return _tagged(text, tag_position, truncated)  # any other mark is inside the tag
    last = max(tag_position, hash_position, anchor_position)
    if last < 0:
        return (None if truncated else final_conclusion(whole)) or _bare(whole)
    if last == tag_position:
        return _tagged(text, tag_position, truncated)
    if last == hash_position:
        start = hash_position + 4
        content, end = read_first_line(whole, start)
    else:
        start = anchor_position
        content, end = read_sentence(whole, start)
    return answer_in_context(whole, start, end, content)


def _tagged(text: str, position: int, truncated: bool) -> str | None:
    """Return the content of the last `<answer>` tag; None if an earlier one has a different answer.

    The last tag may lack its end tag, because a stop string is not part of the response.
    """
    parts = [piece.partition("</answer>") for piece in text.split("<answer>")[1:]]
    if truncated and not parts[-1][1]:
        return None
    contents = [_tag_content(content) for content, _, _ in parts[-MAX_TAGS:]]
    last = parse_answer(normalize(contents[-1]))
    if not all(equal_answers(last, parse_answer(spelling)) for spelling in set(map(normalize, contents))):
        return None
    end = len(text) - len(parts[-1][2])
    return answer_in_context(text, position, end, contents[-1])


def _tag_content(text: str) -> str:
    """Return the content of a tag, or the answer that the sentence in it states."""
    anchor = ANCHOR.search(text[:MAX_ANSWER])
    if anchor is None or "\n" in text[: anchor.start()].strip():
        return _unquoted(text.strip())
    content, end = read_sentence(text, anchor.end())
    return _unquoted((answer_in_context(text, anchor.end(), end, content) or "").strip())


def _bare(text: str) -> str | None:
    """Return a response of one short line, or a number that is alone on the last line or in a last display.

    A response in words may have at most `MAX_WORDS` words.
    """
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
