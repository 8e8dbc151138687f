"""The rows of a data set as `volley audit` looks at them: one text for each part of a row, and numbers that stand for
the texts, so that 100,000 rows are compared in seconds.

Texts are references into the rows, not copies; what is added is 8 bytes a text and comparison.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volley.cluster.data_tools.data_kind import KINDS, DataKind
from volley.rollout.data.chat import check_messages, completion_text, with_split_conversations
from volley.rollout.data.rows import Rows
from volley.rollout.errors import DataError

Keys = NDArray[np.uint64]
PUNCTUATION = ".,;:!?\"'`*_‘’“”…"


@dataclass(slots=True)
class Table:
    """The rows that can be read, in the data's order. kind: of `data_kind.KINDS`. prompts: as they stand in the row
    (text or messages). texts: part ("prompt", "chosen", "rejected", "completion", "answer") -> one text a row; a chat
    is the contents of its messages. labels: as they stand in the rows. places: index of each row in the data.
    broken: what is wrong with the rows that are left out, with their places."""

    kind: str
    rows: Rows
    prompts: list[Any] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)

    def where(self, index: int) -> str:
        """The place of a row of the table, as a user finds it."""
        return self.rows.where(self.places[index])

    @property
    def completions(self) -> list[str]:
        """The parts that a model is trained on."""
        return [part for part in ("chosen", "rejected", "completion") if part in self.texts]

    def keys(self, part: str, normalised: bool) -> Keys:
        """A number a row, equal where the texts are (after `normalise`, or but for white space at the ends)."""
        texts = map(normalise, self.texts[part]) if normalised else map(str.strip, self.texts[part])
        # The hash of a text has 64 bits: among a million texts the chance of two that share one is 3e-8.
        return np.fromiter(map(hash, texts), np.int64, len(self)).view(np.uint64)


def make_table(rows: Rows, kind: DataKind) -> Table:
    """`rows`, read under their own names, as a table. Rows that cannot be read are set aside, never an error."""
    table = Table(kind.kind, rows)
    parts = [name for name in KINDS[kind.kind] if name != "label"]
    table.texts = {name: [] for name in ("prompt", *parts)}
    label = kind.columns.get("label", "")
    for index, row in enumerate(rows.values):
        try:
            prompt, texts = _read(row, parts, rows.where(index), kind)
        except DataError as error:
            table.broken.append(str(error))
            continue
        for name, text in texts.items():
            table.texts[name].append(text)
        table.prompts.append(prompt)
        table.places.append(index)
        if label:
            table.labels.append(row.get(label))
    return table


def normalise(text: str) -> str:
    """`text` without what does not change its sense: case, white space, punctuation around words, forms of Unicode.
    Signs within words stay, so that "2-2" and "2+2" are not the same."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join([bare for word in text.lower().split() if (bare := word.strip(PUNCTUATION))])


def combined(keys: Sequence[Keys]) -> Keys:
    """One number a row for several, in their order."""
    total = np.zeros_like(keys[0])
    for each in keys:
        # A product by an odd number and a rotation lose nothing, and tell (a, b) from (b, a).
        total = (total * np.uint64(0x9E3779B97F4A7C15)) ^ each
        total = (total << np.uint64(29)) | (total >> np.uint64(35))
    return total


def _read(row: Mapping[str, Any], parts: Sequence[str], where: str, kind: DataKind) -> tuple[Any, dict[str, str]]:
    """The prompt as it stands there, and the text of every part."""
    values: dict[str, Any] = {ours: row.get(theirs) for ours, theirs in kind.columns.items()}
    for name, value in values.items():
        if value is None:
            problem = (
                f"'{kind.columns[name]}' is null"
                if kind.columns[name] in row
                else f"there is no '{kind.columns[name]}'"
            )
            raise DataError(f"{where}: {problem}; give it a value, or remove the row.")
    values = with_split_conversations(values, where)
    if "prompt" not in values:
        raise DataError(f"{where}: chosen and rejected are no conversations, and there is no prompt; name its column.")
    prompt = values["prompt"]
    messages = None if isinstance(prompt, str) else check_messages(prompt, where)
    texts = {"prompt": prompt if messages is None else "\n\n".join(message["content"] for message in messages)}
    for name in parts:
        texts[name] = str(values[name]) if name == "answer" else _completion(values[name], f"{where}: {name}")
    return prompt, texts


def _completion(value: Any, where: str) -> str:
    """The text of a completion; an empty one is counted later, so it is none of the errors here."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and value[0].get("content") == "":
        return ""
    return "" if value == "" else completion_text(value, where)
