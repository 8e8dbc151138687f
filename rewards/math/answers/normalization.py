"""Normalizes the text of an answer: one spelling for everything that looks the same on paper.

- Unicode becomes ASCII and LaTeX: digits of any script, superscripts, vulgar fractions, roots, signs.
- Math delimiters and the commands for spacing and text are removed.
- `\\frac`, `^`, `*`, `/`, `-` and `%` replace their variants.
- Text with invisible characters or characters that reorder it (bidirectional controls, null bytes, zero-width
  characters) is unreadable and becomes "".
"""

import re
import unicodedata
from functools import lru_cache

from volley.rewards.math.answers.units import spell_out_unit

MAX_CHARS = 256
"""Characters of an answer. Longer ones are unreadable."""

_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]"
)
_SIGNS = {
    **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}", "-"),
    **dict.fromkeys("×·⋅∙∗✕", "*"),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("’′", "'"),
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "∨": r"\lor ",
    "∧": r"\land ",
    "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "δ": r"\delta ",
    "θ": r"\theta ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "φ": r"\phi ",
    "ω": r"\omega ",
}
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ", "0123456789+-nx")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_TEXT = (
    "text|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|mbox|operatorname|bf|rm|emph"
    "|underline|underbar|textup|mathnormal|boldsymbol|bm"
)
_FONTS = "bf|rm|it|sf|tt|bfseries|itshape|boldmath|tiny|small|normalsize|large|Large|LARGE|huge|Huge"

# Each with a literal that every match contains. Searching the literal first takes a tenth of the time.
_REPLACEMENTS: list[tuple[str, re.Pattern[str], str]] = [
    ("$", re.compile(r"(?<!\\)\$([^$\\]*(?:\\.[^$\\]*)*)\$"), r" \1 "),
    ("\\", re.compile(r"(?<!\\)\\[()\[\]]"), " "),
    ("**", re.compile(r"(?<!\w)\*\*([^*\s](?:[^*]*[^*\s])?)\*\*(?!\w)"), r"\1"),
    ("\\", re.compile(r"\\(?:left|right|displaystyle|textstyle|bigg?[lr]?|Bigg?[lr]?|limits)(?![A-Za-z])\.?"), ""),
    (",\\", re.compile(r",\\[!,]\s*(?=[0-9]{3})"), ","),
    ("\\", re.compile(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))|(?<!\\)\\!"), ""),
    ("\\,", re.compile(r"(?<!\\)\\,"), " "),
    ("{", re.compile(r"(?<=[0-9]) ?\{\s*,\s*\} ?(?=[0-9]{3})|\{\s*,\s*\}"), ","),
    ("color", re.compile(r"\\(?:textcolor|color|colorbox)\s*\{[a-zA-Z!0-9]*\}"), " "),
    ("\\", re.compile(rf"\\(?:{_TEXT})\s*\{{([^{{}}]*)\}}"), r" \1 "),
    ("\\", re.compile(rf"\\(?:{_TEXT})\s*\{{([^{{}}]*)\}}"), r" \1 "),
    ("\\", re.compile(rf"\\(?:(?:{_FONTS})(?![A-Za-z{{])\s*|(?:underline|boldsymbol|bm)(?=\s*\{{))"), ""),
    ("frac", re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    ("\\", re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])"), " degrees "),
    ("°", re.compile("°"), " degrees "),
    ("**", re.compile(r"\*\*"), "^"),
    ("\\", re.compile(r"\\(?:cdot|times|ast)(?![A-Za-z])"), "*"),
    ("x", re.compile(r"(?<=[0-9]) ?x ?(?=10 ?\^)"), "*"),
    ("\\div", re.compile(r"\\div(?![A-Za-z])"), "/"),
    ("\\choose", re.compile(r"\{([^{}\\]*)\\choose(?![A-Za-z])([^{}\\]*)\}"), r"\\binom{\1}{\2}"),
    ("\\over", re.compile(r"\{([^{}\\]*)\\over(?![A-Za-z])([^{}\\]*)\}"), r"\\frac{\1}{\2}"),
    ("\\%", re.compile(r"\\%"), "%"),
    ("percent", re.compile(r"(?:\b|(?<=[0-9]))percent(?:age)?\b"), "%"),
    ("pct", re.compile(r"(?:\b|(?<=[0-9]))pct\b"), "%"),
    ("\\", re.compile(r"(?<!\\)\\([$#&])"), r"\1"),
    ("\\", re.compile(r"(?<!\\)\\(?:[;:> ]|(?:q?quad|(?:thin|med|thick|en)space)(?![A-Za-z]))"), " "),
    ("~", re.compile("~"), " "),
    ("pi", re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    ("sqrt", re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    ("$", re.compile(r"(?<=[0-9])\$(?=[^0-9])|(?<=[^0-9])\$(?=\s*(?:and|or|,|%|$))"), " "),
    ("{", re.compile(r"^\s*\{([^{}]*(?<!\\))\}[\s.]*$"), r"\1"),
    ("\\", re.compile(r"(?<!\\)\\\s*$"), ""),
]
_PLAIN = re.compile(r"-?[0-9]{1,80}(?:\.[0-9]{1,80})?")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))


def normalize(text: str) -> str:
    """Return the normalized text of an answer, without the full stop at its end.

    "" for text longer than `MAX_CHARS` and for text with invisible or reordering characters.
    """
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return text
    return _normalize(text) if len(text) <= MAX_CHARS else ""


@lru_cache(4096)
def _normalize(text: str) -> str:
    if _INVISIBLE.search(text):
        return ""
    if not text.isascii():
        text = _to_ascii(text)
    before = None
    while before != text:
        before = text
        text = text.strip(" \t\r\n")
        text = _without_final_stop(text)
        for left, right in _WRAPPERS:
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                inside = text[len(left) : -len(right)]
                if left not in inside:
                    text = inside
    text = spell_out_unit(text)
    for literal, pattern, replacement in _REPLACEMENTS:
        if literal in text:
            text = pattern.sub(replacement, text)
    return _without_final_stop(" ".join(text.split()))


def _without_final_stop(text: str) -> str:
    """Remove the punctuation at the end of a text, except an ellipsis and a command such as `\\;`."""
    end = len(text)
    while not text.endswith("..") and text[end - 1 : end] in (".", ",", ";", ":") and text[end - 2 : end - 1] != "\\":
        end -= 1
    return text[:end].rstrip()


def _to_ascii(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"([√∛∜])\s*(\([^()]*\)|[0-9.]+|[A-Za-z])?", _root, text)
    return "".join(map(_character, text))


def _root(match: re.Match[str]) -> str:
    """Return a root sign with its radicand as LaTeX."""
    radicand = match[2] or ""
    return _ROOTS[match[1]] + (f"{{{radicand.removeprefix('(').removesuffix(')')}}}" if radicand else "")


def _character(character: str) -> str:
    """Return the ASCII or LaTeX spelling of one character, or the character itself if it has none."""
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    wide = unicodedata.normalize("NFKC", character)
    if "⁄" in wide:
        numerator, _, denominator = wide.partition("⁄")
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    is_form = unicodedata.east_asian_width(character) == "F" or character.isspace()
    return wide if is_form and wide.isascii() else character
