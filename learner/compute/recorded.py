"""The frozen reference policy as a table of its log-probs.

Where all rows are known before the first step and the reference never changes, the policy itself, before its first
update, is the reference. So its log-probs are computed once, and a data set needs no second model in memory at any
time. The driver keeps the table and sends each rank the log-probs of its rows.
"""

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from volley.learner.signals.rows import Floats, Rows, pairwise_slices, starts_of

Key = bytes
Table = dict[Key, Floats]
"""Key of a completion -> log-probs of its trained tokens."""


class Recorded:
    """A table of log-probs under the starting model."""

    def __init__(self, table: Mapping[Key, Floats]) -> None:
        self._table = table

    def logprobs_M(self, rows: Rows) -> Floats:
        """Log-probs of the trained tokens of `rows`. Raises `KeyError` for a completion that was not recorded."""
        found = [self._table[key] for key in keys_of(rows)]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


def keys_of(rows: Rows) -> list[Key]:
    """Of each completion: a hash of its tokens, of which are trained, and of how they are cut into rows."""
    keys = []
    starts, ids, trained, lengths = rows.token_starts.tolist(), rows.token_ids, rows.trained, rows.lengths
    for n, segments in enumerate(pairwise_slices(rows.completion_starts)):
        digest = hashlib.blake2b(np.ascontiguousarray(ids[starts[n] : starts[n + 1]]).data, digest_size=16)
        digest.update(np.ascontiguousarray(trained[starts[n] : starts[n + 1]]).data)
        digest.update(np.ascontiguousarray(lengths[segments]).data)
        keys.append(digest.digest())
    return keys


def as_table(rows: Rows, logprobs_M: Floats) -> Table:
    """A table of these completions, whose trained tokens have these log-probs."""
    parts = pairwise_slices(starts_of(rows.trained_per_completion))
    return {key: logprobs_M[part] for key, part in zip(keys_of(rows), parts, strict=True)}


def missing_rows(rows: Rows, table: Table) -> Rows:
    """Those that the table does not have, each completion once."""
    first = {key: n for n, key in reversed(list(enumerate(keys_of(rows))))}
    return rows.take(np.array(sorted(n for key, n in first.items() if key not in table), dtype=np.int64))


def read_table(file: Path) -> Table:
    """What `write_table` wrote; {} where there is no readable file."""
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException):
        return {}
    table: Table = {}
    for batch in columns.to_batches():
        logprobs = batch.column("logprobs")
        starts, values = np.asarray(logprobs.offsets, dtype=np.int64), np.asarray(logprobs.values, dtype=np.float32)
        for key, part in zip(batch.column("key").to_pylist(), pairwise_slices(starts), strict=True):
            table[key] = values[part]
    return table


def write_table(file: Path, table: Mapping[Key, Floats]) -> None:
    """Write Parquet, completely or not at all."""
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, because another run may be writing the same table.
    temporary = file.with_name(f"{file.stem}.{uuid.uuid4().hex}.writing")
    parts = list(table.values())
    columns = {
        "key": pyarrow.array(table.keys(), pyarrow.binary()),
        "logprobs": pyarrow.LargeListArray.from_arrays(
            starts_of([len(part) for part in parts]),
            np.concatenate(parts, dtype=np.float32) if parts else np.zeros(0, dtype=np.float32),
        ),
    }
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
