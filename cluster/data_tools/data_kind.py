"""Detect the kind of a data set from its columns, for `volley init` and `volley audit`.

Column names are matched case-insensitively against the names that public data sets use.

Not supported: ranked lists of completions and completions with scores. Convert them to pairs or labels first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from volley.rollout.data.rows import Rows
from volley.rollout.errors import DataError

NAMES = {
    "prompt": ("prompt", "question", "problem", "query", "instruction", "messages", "input"),
    "answer": ("answer", "final_answer", "ground_truth", "gold", "solution", "target"),
    "completion": ("completion", "response", "output", "demonstration"),
    "chosen": ("chosen", "preferred", "winner"),
    "rejected": ("rejected", "dispreferred", "loser"),
    "label": ("label", "desirable", "thumbs_up"),
}
"""Volley's name of a column -> the names that data sets use for it, most common first."""

KINDS = {
    "pairs": ("chosen", "rejected"),
    "labels": ("completion", "label"),
    "answers": ("answer",),
    "demonstrations": ("completion",),
    "prompts": (),
}
"""Kind of data -> the columns it requires in addition to the prompt."""

SPIN = "spin"
"""The method of `volley init` that is a way to use a loss, not a separate loss."""

MARKER = "####"
"""GSM8K's separator between the worked solution and the final answer."""
LONG_ANSWER = 200
"""Median length in characters above which answers are treated as demonstrations, not as results to check."""


@dataclass(frozen=True, slots=True)
class DataKind:
    """The kind of a data set and the columns that hold its parts."""

    kind: str
    """One of `KINDS`."""
    columns: dict[str, str]
    """Volley's name -> the data's name. Has no `prompt` if chosen and rejected are conversations that include it."""
    marker: bool = False
    """Whether every answer contains `MARKER`."""
    checkable: bool = False
    """Whether answers are numbers or formulas."""


def find_kind(rows: Rows, given: Mapping[str, str]) -> DataKind:
    """Detect the kind of `rows`, whose columns have their original names.

    given: columns that the user named explicitly (Volley's name -> the data's name).

    Raises `DataError` for a missing column and for data without a prompt.
    """
    names = list(dict.fromkeys(name for row in rows.values[:1000] for name in row))
    for ours, theirs in given.items():
        if ours not in NAMES:
            raise DataError(f"'{ours}' is not a column that Volley reads; valid names: {', '.join(NAMES)}.")
        if theirs not in names:
            raise DataError(f"{rows.spec}: there is no column '{theirs}'; available columns: {', '.join(names)}.")
    free = [name for name in names if name not in given.values()]
    found = {ours: theirs for ours, known in NAMES.items() if (theirs := _find(free, known))}
    columns = found | dict(given)
    if {"chosen", "rejected"} <= set(columns):
        kind = DataKind("pairs", _only(columns, "pairs"))
    elif {"completion", "label"} <= set(columns) and "answer" not in given:
        kind = DataKind("labels", _only(columns, "labels"))
    else:
        if "completion" in given and "answer" not in given:
            columns.pop("answer", None)
        kind = _unlabelled(rows, columns)
    if "prompt" not in kind.columns and not (kind.kind == "pairs" and _are_conversations(rows, kind.columns)):
        raise DataError(
            f"{rows.spec}: no prompt column found among {', '.join(names)}; rename the column to 'prompt' or map it "
            "(volley audit: --columns prompt=COLUMN; in a recipe: data.columns: {prompt: COLUMN})."
        )
    return kind


def _unlabelled(rows: Rows, columns: dict[str, str]) -> DataKind:
    """Distinguish answers to check, demonstrations and plain prompts."""
    answer = columns.get("answer", "")
    answers = [str(row[answer]) for row in rows.values if row.get(answer) is not None]
    marker = bool(answers) and all(MARKER in text for text in answers)
    if marker:
        answers = [text.rpartition(MARKER)[2] for text in answers]
    if answer and not _are_texts(answers):
        return DataKind("answers", _only(columns, "answers"), marker, _are_formulas(answers))
    if answer:
        columns.setdefault("completion", answer)
    kind = "demonstrations" if "completion" in columns else "prompts"
    return DataKind(kind, _only(columns, kind))


def _only(columns: Mapping[str, str], kind: str) -> dict[str, str]:
    return {ours: theirs for ours, theirs in columns.items() if ours in ("prompt", *KINDS[kind])}


def _are_conversations(rows: Rows, columns: Mapping[str, str]) -> bool:
    """Whether chosen and rejected are lists of messages that include the prompt."""
    first = [row[columns["chosen"]] for row in rows.values[:10] if columns["chosen"] in row]
    return bool(first) and all(isinstance(value, list) and len(value) > 1 for value in first)


def _are_texts(answers: Sequence[str]) -> bool:
    """Whether answers are full responses (demonstrations) rather than results to check."""
    return bool(answers) and median(map(len, answers)) > LONG_ANSWER and not any("\\boxed" in text for text in answers)


def fitting(kind: str) -> tuple[str, ...]:
    """The methods that can train on a kind of data.

    A method is a loss or "spin" (DPO against the policy's own samples). If the data has only answers or prompts, losses
    on pairs and labels train on samples of the policy.
    """
    from volley.learner.losses import LOSSES  # imports torch, which most of an audit does without

    if kind in ("answers", "prompts"):
        return tuple(name for name, loss in LOSSES.items() if loss.signal.from_policy)
    losses = tuple(name for name, loss in LOSSES.items() if loss.signal.label == kind)
    return (*losses, SPIN) if kind == "demonstrations" else losses


def _are_formulas(answers: Sequence[str]) -> bool:
    return sum(bool(re.search(r"\d|\\[a-zA-Z]", text)) for text in answers) > len(answers) / 2


def _find(names: Sequence[str], known: Sequence[str]) -> str:
    """The first of `known` among the data's column names (case-insensitive), or "" if there is none."""
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in known if name in lowered), "")
