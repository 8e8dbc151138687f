"""The table that `volley audit` checks: one text per part of a row, compared by hash so that 100,000 rows take seconds.

Texts are references into the rows, not copies. A comparison adds 8 bytes per text.
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
    """The readable rows of a data set, in order."""

    kind: str
    """One of `data_kind.KINDS`."""
    rows: Rows
    """All rows of the data set, including unreadable ones."""
    prompts: list[Any] = field(default_factory=list)
    """Original prompts: text or messages."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Part ("prompt", "chosen", "rejected", "completion", "answer") -> one text per row.

    The text of a chat is the contents of its messages.
    """
    labels: list[Any] = field(default_factory=list)
    """Original labels, unchecked."""
    indices: list[int] = field(default_factory=list)
    """The index of each readable row in `rows`."""
    broken: list[str] = field(default_factory=list)
    """One error per unreadable row, with its place."""

    def __len__(self) -> int:
        return len(self.indices)

    def where(self, index: int) -> str:
        """The file and line of a row of the table."""
        return self.rows.where(self.indices[index])

    @property
    def completions(self) -> list[str]:
        """The parts that a model is trained on."""
        return [part for part in ("chosen", "rejected", "completion") if part in self.texts]

    def keys(self, part: str, normalised: bool) -> Keys:
        """One hash per row. Equal texts have equal hashes, after `normalise` or after stripping white space."""
        texts = map(normalise, self.texts[part]) if normalised else map(str.strip, self.texts[part])
        # With 64 bits the chance of a collision among a million texts is 3e-8.
        return np.fromiter(map(hash, texts), np.int64, len(self)).view(np.uint64)


def make_table(rows: Rows, kind: DataKind) -> Table:
    """Build a table of `rows`, whose columns have their original names. Unreadable rows go to `broken`."""
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
        table.indices.append(index)
        if label:
            table.labels.append(row.get(label))
    return table


def normalise(text: str) -> str:
    """Remove case, extra white space, punctuation around words and differences of Unicode form.

    Characters inside words stay, so "2-2" and "2+2" remain different.
    """
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join([bare for word in text.lower().split() if (bare := word.strip(PUNCTUATION))])


def combined(keys: Sequence[Keys]) -> Keys:
    """Combine several hashes per row into one; the order of `keys` matters."""
    total = np.zeros_like(keys[0])
    for each in keys:
        # Multiplying by an odd number and rotating are bijective and distinguish (a, b) from (b, a).
        total = (total * np.uint64(0x9E3779B97F4A7C15)) ^ each
        total = (total << np.uint64(29)) | (total >> np.uint64(35))
    return total


def _read(row: Mapping[str, Any], parts: Sequence[str], where: str, kind: DataKind) -> tuple[Any, dict[str, str]]:
    """The original prompt, and the text of every part."""
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
        raise DataError(
            f"{where}: chosen and rejected are not conversations, and there is no prompt; name the prompt column."
        )
    prompt = values["prompt"]
    messages = None if isinstance(prompt, str) else check_messages(prompt, where)
    texts = {"prompt": prompt if messages is None else "\n\n".join(message["content"] for message in messages)}
    for name in parts:
        texts[name] = str(values[name]) if name == "answer" else _completion(values[name], f"{where}: {name}")
    return prompt, texts


def _completion(value: Any, where: str) -> str:
    """The text of a completion. An empty completion is not an error here; `check_empty` counts it."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and value[0].get("content") == "":
        return ""
    return "" if value == "" else completion_text(value, where)
