"""What kind of data a data set is, judged by its columns: what `volley init` and `volley audit` have in common.

The names are those that the ecosystem uses, whatever their case. Left out: tables whose completions are ranked lists or
carry scores; make pairs or labels of them first.
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
"""Our name of a column -> what data sets call it, the likeliest first."""

KINDS = {
    "pairs": ("chosen", "rejected"),
    "labels": ("completion", "label"),
    "answers": ("answer",),
    "demonstrations": ("completion",),
    "prompts": (),
}
"""A kind of data -> the columns that make it, beside the prompt."""

SAMPLED = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo")
PAIRED = ("dpo", "ipo", "simpo", "orpo")
FITTING = {
    "pairs": PAIRED,
    "labels": ("kto",),
    "answers": (*SAMPLED, *PAIRED, "kto"),
    "demonstrations": ("sft", "spin"),
    "prompts": (*SAMPLED, *PAIRED, "kto"),
}
"""A kind of data -> what can learn from it: losses, and SPIN, which is DPO against the policy's own answers. Losses of
pairs and labels get theirs from the policy's own samples where the data has answers or prompts only."""

MARKER = "####"
LONG_ANSWER = 200  # characters, above which an answer is a text to imitate rather than a result to check


@dataclass(frozen=True, slots=True)
class DataKind:
    """kind: one of `KINDS`. columns: our name -> the data's; no `prompt` where chosen and rejected are conversations
    that begin with it. marker: whether every answer has one. checkable: whether answers are numbers or formulas."""

    kind: str
    columns: dict[str, str]
    marker: bool = False
    checkable: bool = False


def find_kind(rows: Rows, given: Mapping[str, str]) -> DataKind:
    """The kind of `rows`, read under their own names. given: columns that the user named, our name -> the data's.

    Raises `DataError` for a column that is not there, and for data without a prompt.
    """
    names = list(dict.fromkeys(name for row in rows.values[:1000] for name in row))
    for ours, theirs in given.items():
        if ours not in NAMES:
            raise DataError(f"'{ours}' is not a column Volley reads; it reads {', '.join(NAMES)}.")
        if theirs not in names:
            raise DataError(f"{rows.spec}: there is no column '{theirs}'; the columns are {', '.join(names)}.")
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
            f"{rows.spec}: none of its columns ({', '.join(names)}) is known as a prompt; call it 'prompt', or name "
            "it (for volley audit with --columns prompt=COLUMN, in a recipe with data.columns: {prompt: COLUMN})."
        )
    return kind


def _unlabelled(rows: Rows, columns: dict[str, str]) -> DataKind:
    """Answers to be checked, or texts to be imitated."""
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
    """Whether chosen and rejected are lists of messages that begin with what was asked."""
    first = [row[columns["chosen"]] for row in rows.values[:10] if columns["chosen"] in row]
    return bool(first) and all(isinstance(value, list) and len(value) > 1 for value in first)


def _are_texts(answers: Sequence[str]) -> bool:
    """Whether answers are whole texts, to be imitated, rather than results, to be checked."""
    return bool(answers) and median(map(len, answers)) > LONG_ANSWER and not any("\\boxed" in text for text in answers)


def _are_formulas(answers: Sequence[str]) -> bool:
    return sum(bool(re.search(r"\d|\\[a-zA-Z]", text)) for text in answers) > len(answers) / 2


def _find(names: Sequence[str], known: Sequence[str]) -> str:
    """The first of `known` among the data's column names, whatever its case; "" if none."""
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in known if name in lowered), "")
