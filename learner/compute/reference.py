"""The frozen reference policy: log-probs of what the policy is held against.

Either a second copy of the model (`FrozenCopy`), or, where all rows are known before the first step and the reference
never changes, a table of its log-probs (`Recorded`): then the policy itself, before its first update, is the reference,
so a data set needs no second model in memory at any time.
"""

import copy
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from volley.learner.compute.model import PolicyModel
from volley.learner.compute.packing import Collated
from volley.learner.signals.batch import Row

Key = bytes


class Reference(Protocol):
    """What the learner asks of a reference."""

    def logprobs_NT(self, rows: Sequence[Row], data: Collated) -> Tensor:
        """Log-probs of the completion tokens of `rows`, whose tensors are `data`: [N, T], 0 at padding, no gradient."""
        ...


class FrozenCopy:
    """A copy of `model` as it is now; temperature: of the sampling distribution."""

    def __init__(self, model: PolicyModel, temperature: float) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False).eval()
        self._temperature = temperature

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    def logprobs_NT(self, rows: Sequence[Row], data: Collated) -> Tensor:
        with torch.no_grad():
            values_M, *_ = self._model(*data.model_inputs, self._temperature, False)
        return data.scatter(values_M)

    def refresh(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Become the policy whose weights these are."""
        own = dict(self._model.causal_lm.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                own[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: parameter.detach().cpu() for name, parameter in self._model.causal_lm.named_parameters()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._model.causal_lm.load_state_dict(tensors, strict=False)


class Recorded:
    """A table from rows to their log-probs under the starting model. Asking for a row that is not in it is an error of
    the caller."""

    def __init__(self, table: Mapping[Key, Sequence[float]]) -> None:
        self._table = table

    def logprobs_NT(self, rows: Sequence[Row], data: Collated) -> Tensor:
        values = torch.zeros_like(data.mask_NT)
        for i, row in enumerate(rows):
            known = self._table[key_of(row)]
            values[i, : len(known)] = torch.tensor(known, dtype=values.dtype, device=values.device)
        return values


def key_of(row: Row) -> Key:
    """Of the row's tokens, whatever else it says."""
    text = f"{row.prompt_ids}|{row.completion_ids}".encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def read_table(file: Path) -> dict[Key, list[float]]:
    """What `write_table` wrote; {} where there is no readable file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException):
        return {}
    return dict(zip(table["key"].to_pylist(), table["logprobs"].to_pylist(), strict=True))


def write_table(file: Path, table: Mapping[Key, Sequence[float]]) -> None:
    """As Parquet, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    # Its own name: another run may be writing the same table.
    temporary = file.with_name(f"{file.stem}.{uuid.uuid4().hex}.writing")
    columns = {
        "key": pyarrow.array(table.keys(), pyarrow.binary()),
        "logprobs": pyarrow.array(table.values(), pyarrow.list_(pyarrow.float32())),
    }
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)


def record(
    rows: Sequence[Row],
    file: Path,
    compute: Callable[[Sequence[Row]], Sequence[Sequence[float]]],
    agree: Callable[[dict[Key, list[float]]], dict[Key, list[float]]],
    writes: bool,
) -> Recorded:
    """The reference of `rows`, from `file` as far as it has them, else computed and written there.

    compute: log-probs under the policy as it is now; a collective of all ranks. agree: what rank 0 says, on every rank.
    writes: whether this rank writes the file.
    """
    distinct = {key_of(row): row for row in rows}
    known = agree(read_table(file) if writes else {})
    missing = {key: row for key, row in distinct.items() if key not in known}
    if missing:
        known |= zip(missing, map(list, compute(list(missing.values()))), strict=True)
        if writes:
            write_table(file, known)
    return Recorded({key: known[key] for key in distinct})
