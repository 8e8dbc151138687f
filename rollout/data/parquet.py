"""Scored groups as Arrow: what crosses the wire and lies on disk.

One row per completion, flat, so that any tool that reads Parquet can look at a run's samples. A group is a run of rows
that starts where `sample` is 0. The round trip is exact: rewards, terms and accuracies are float64 (NaN kept),
log-probs float32, which is what engines compute them in; a prompt's row is JSON.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from volley.rollout.errors import DataError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("ordinal", pa.int64()),
        ("index", pa.int64()),
        ("prompt", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("answer", pa.string()),
        ("row", pa.string()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("first_version", pa.int64()),
        ("last_version", pa.int64()),
        ("reward", pa.float64()),
        ("terms", pa.map_(pa.string(), pa.float64())),
        ("unscorable", pa.string()),
        ("accuracy", pa.float64()),
        ("extracted", pa.string()),
    ]
)


def to_batch(groups: Sequence[ScoredGroup], step: int) -> pa.RecordBatch:
    """One record batch of `SCHEMA`; `step` is the optimizer step that the groups were trained in."""
    rows = [
        _row(group, step, sample, completion, score)
        for group in groups
        for sample, (completion, score) in enumerate(zip(group.completions, group.scores, strict=True))
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def from_batch(batch: "pa.RecordBatch | pa.Table") -> list[ScoredGroup]:
    """The groups of `to_batch`, in their order."""
    groups: list[ScoredGroup] = []
    members: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        if row["sample"] == 0 and members:
            groups.append(_group(members))
            members = []
        members.append(row)
    return [*groups, _group(members)] if members else groups


def write_groups(path: Path, groups: Sequence[ScoredGroup], step: int) -> None:
    """Write a Parquet file; it appears under its name only when it is whole."""
    temporary = path.with_name(f".{path.name}.writing")
    pa.parquet.write_table(pa.Table.from_batches([to_batch(groups, step)]), temporary, compression="zstd")
    os.replace(temporary, path)


def read_groups(path: Path) -> list[ScoredGroup]:
    """The groups of a file of `write_groups`. Raises `DataError` if it is missing, damaged, or something else."""
    try:
        with path.open("rb") as stream:
            table = pa.parquet.read_table(stream)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is not a readable file of samples ({str(error).splitlines()[0]}).") from None
    lacking = [name for name in SCHEMA.names if name not in table.column_names]
    if lacking:
        raise DataError(f"'{path}' is not a file of samples: it has no column '{lacking[0]}'.")
    return from_batch(table)


def _row(group: ScoredGroup, step: int, sample: int, completion: Completion, score: Score) -> dict[str, Any]:
    prompt = group.prompt
    return {
        "step": step,
        "ordinal": prompt.ordinal,
        "index": prompt.index,
        "prompt": prompt.text,
        "prompt_token_ids": prompt.token_ids,
        "answer": prompt.answer,
        "row": json.dumps(dict(prompt.row)),
        "sample": sample,
        "completion": completion.text,
        "token_ids": completion.token_ids,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
        "first_version": completion.first_version,
        "last_version": completion.last_version,
        "reward": score.reward,
        "terms": list(score.terms.items()),
        "unscorable": _storable(score.unscorable),
        "accuracy": score.accuracy,
        "extracted": None if score.extracted is None else _storable(score.extracted),
    }


def _storable(text: str) -> str:
    """What a reward wrote may hold half characters, which no file can."""
    return text.encode("utf-8", "replace").decode()


def _group(rows: Sequence[dict[str, Any]]) -> ScoredGroup:
    first = rows[0]
    prompt = Prompt(
        first["ordinal"],
        first["index"],
        first["prompt"],
        as_token_ids(first["prompt_token_ids"]),
        first["answer"],
        json.loads(first["row"]),
    )
    return ScoredGroup(prompt, tuple(map(_completion, rows)), tuple(map(_score, rows)))


def _completion(row: dict[str, Any]) -> Completion:
    return Completion.single(
        row["token_ids"],
        row["logprobs"],
        row["completion"],
        row["finish_reason"],
        row["first_version"],
        row["last_version"],
    )


def _score(row: dict[str, Any]) -> Score:
    return Score(row["reward"], dict(row["terms"]), row["unscorable"], row["accuracy"], row["extracted"])
