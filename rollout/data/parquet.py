"""Scored groups as Arrow record batches and Parquet files.

One row per completion, flat, so that any tool that reads Parquet can show a run's samples. A group is a run of rows
that starts where `sample` is 0. The round trip is exact: rewards, terms and accuracies are float64 (NaN is kept),
log-probs are float32, which is what engines compute them in, and a prompt's other columns are JSON. Tokens pass between
numpy and Arrow as buffers; no Python object per token is created in either direction.

A completion's tokens, log-probs and mask are those of all its segments, one after the other; `segment_lengths` and
`spans` say how to cut them apart. Files from before these columns existed hold one segment per completion, all sampled.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from volley.rollout.data.packed import PackedCompletions, joined
from volley.rollout.errors import DataError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup

SPAN = pa.struct(
    [
        ("segment", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("first_version", pa.int64()),
        ("last_version", pa.int64()),
    ]
)
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
        ("sampled", pa.list_(pa.bool_())),
        ("segment_lengths", pa.list_(pa.int32())),
        ("spans", pa.list_(SPAN)),
    ]
)
EPISODE_COLUMNS = ("sampled", "segment_lengths", "spans")
"""Columns that files of earlier versions lack."""


def to_batch(groups: Sequence[ScoredGroup], step: int) -> pa.RecordBatch:
    """One record batch of `SCHEMA`; `step` is the optimizer step that the groups were trained in."""
    completions = [completion for group in groups for completion in group.completions]
    scores = [score for group in groups for score in group.scores]
    sizes = [len(group.completions) for group in groups]
    prompts = [group.prompt for group in groups]
    columns = {
        "step": pa.array(np.full(len(completions), step, np.int64)),
        **_prompt_columns(prompts, sizes),
        "sample": pa.array(joined([np.arange(size, dtype=np.int32) for size in sizes], np.int32)),
        **_completion_columns(completions),
        **_score_columns(scores),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def from_batch(batch: "pa.RecordBatch | pa.Table") -> list[ScoredGroup]:
    """The groups of `to_batch`, in their order."""
    table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
    if not len(table):
        return []
    columns = {name: _whole(table, name) for name in table.column_names}
    completions, scores = _completions(columns), _scores(columns)
    starts = np.flatnonzero(columns["sample"].to_numpy() == 0).tolist()
    ends = [*starts[1:], len(table)]
    return [
        ScoredGroup(prompt, tuple(completions[start:end]), tuple(scores[start:end]))
        for prompt, start, end in zip(_prompts(columns, starts), starts, ends, strict=True)
    ]


def write_groups(path: Path, groups: Sequence[ScoredGroup], step: int) -> None:
    """Write a Parquet file; it appears under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.writing")
    pa.parquet.write_table(pa.Table.from_batches([to_batch(groups, step)]), temporary, compression="zstd")
    os.replace(temporary, path)


def read_groups(path: Path) -> list[ScoredGroup]:
    """The groups of a file of `write_groups`. Raises `DataError` if it is missing, damaged, or not such a file."""
    try:
        with path.open("rb") as stream:
            table = pa.parquet.read_table(stream)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is not a readable file of samples ({str(error).splitlines()[0]}).") from None
    missing = [name for name in SCHEMA.names if name not in (*table.column_names, *EPISODE_COLUMNS)]
    if missing:
        raise DataError(f"'{path}' is not a file of samples: it has no column '{missing[0]}'.")
    return from_batch(table)


def _prompt_columns(prompts: Sequence[Prompt], sizes: Sequence[int]) -> dict[str, pa.Array]:
    """The prompts' columns, every prompt as often as its group has completions."""
    once = {
        "ordinal": pa.array([prompt.ordinal for prompt in prompts], pa.int64()),
        "index": pa.array([prompt.index for prompt in prompts], pa.int64()),
        "prompt": pa.array([prompt.text for prompt in prompts], pa.string()),
        "prompt_token_ids": _lists(
            [len(prompt.token_ids) for prompt in prompts],
            pa.array(joined([prompt.token_ids for prompt in prompts], np.int32)),
        ),
        "answer": pa.array([prompt.answer for prompt in prompts], pa.string()),
        "row": pa.array([json.dumps(dict(prompt.row)) for prompt in prompts], pa.string()),
    }
    places = pa.array(np.repeat(np.arange(len(prompts)), sizes))
    return {name: column.take(places) for name, column in once.items()}


def _completion_columns(completions: Sequence[Completion]) -> dict[str, pa.Array]:
    packed = PackedCompletions.pack(completions)
    num_tokens = _sums(packed.num_tokens, packed.num_segments)
    num_spans = _sums(packed.num_spans, packed.num_segments)
    first_spans = _offsets(num_spans)[:-1]
    spans = packed.spans.T
    # The segment of each span, counted within its completion.
    segments = joined([np.arange(number, dtype=np.int32) for number in packed.num_segments.tolist()], np.int32)
    fields = [np.repeat(segments, packed.num_spans), spans[0].astype(np.int32), spans[1].astype(np.int32), *spans[2:]]
    return {
        "completion": pa.array(packed.texts, pa.string()),
        "token_ids": _lists(num_tokens, pa.array(packed.token_ids)),
        "logprobs": _lists(num_tokens, pa.array(packed.logprobs)),
        "finish_reason": pa.array(packed.finish_reasons, pa.string()),
        "first_version": pa.array(np.minimum.reduceat(spans[2], first_spans) if completions else spans[2]),
        "last_version": pa.array(np.maximum.reduceat(spans[3], first_spans) if completions else spans[3]),
        "sampled": _lists(num_tokens, pa.array(packed.sampled)),
        "segment_lengths": _lists(packed.num_segments, pa.array(packed.num_tokens)),
        "spans": _lists(
            num_spans,
            pa.StructArray.from_arrays([pa.array(np.ascontiguousarray(field)) for field in fields], fields=list(SPAN)),
        ),
    }


def _score_columns(scores: Sequence[Score]) -> dict[str, pa.Array]:
    terms = [score.terms for score in scores]
    return {
        "reward": pa.array([score.reward for score in scores], pa.float64()),
        "terms": pa.MapArray.from_arrays(
            pa.array(_offsets([len(each) for each in terms])),
            pa.array([name for each in terms for name in each], pa.string()),
            pa.array([value for each in terms for value in each.values()], pa.float64()),
        ),
        "unscorable": pa.array([_storable(score.unscorable) for score in scores], pa.string()),
        "accuracy": pa.array([score.accuracy for score in scores], pa.float64()),
        "extracted": pa.array(
            [None if score.extracted is None else _storable(score.extracted) for score in scores], pa.string()
        ),
    }


def _storable(text: str) -> str:
    """Text without lone surrogates, which a reward may write and no file can store."""
    return text.encode("utf-8", "replace").decode()


def _lists(lengths: "Sequence[int] | NDArray[Any]", values: pa.Array) -> pa.ListArray:
    """Consecutive stretches of `values`."""
    return pa.ListArray.from_arrays(pa.array(_offsets(lengths)), values)


def _offsets(lengths: "Sequence[int] | NDArray[Any]") -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _sums(values: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """The sum of each of `counts` consecutive stretches of `values`."""
    totals = np.concatenate([[0], np.cumsum(values)])
    return np.diff(totals[_offsets(counts)])


def _whole(table: pa.Table, name: str) -> pa.Array:
    """A column as one array that starts at its own beginning."""
    column = table.column(name)
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 or column.chunk(0).offset else column.chunk(0)


def _values(column: pa.ListArray) -> NDArray[Any]:
    return column.flatten().to_numpy(zero_copy_only=False)


def _lengths(column: pa.ListArray) -> NDArray[np.int32]:
    return column.value_lengths().to_numpy()


def _prompts(columns: dict[str, pa.Array], places: list[int]) -> list[Prompt]:
    own = {
        name: columns[name].take(pa.array(places))
        for name in ("ordinal", "index", "prompt", "prompt_token_ids", "answer", "row")
    }
    token_ids = np.split(_values(own["prompt_token_ids"]), np.cumsum(_lengths(own["prompt_token_ids"]))[:-1])
    ordinals, indices, texts, answers, rows = (
        own[name].to_pylist() for name in ("ordinal", "index", "prompt", "answer", "row")
    )
    return [
        Prompt(ordinal, index, text, ids, answer, json.loads(row))
        for ordinal, index, text, ids, answer, row in zip(
            ordinals, indices, texts, token_ids, answers, rows, strict=True
        )
    ]


def _completions(columns: dict[str, pa.Array]) -> list[Completion]:
    token_ids = columns["token_ids"]
    num_completions, num_tokens = len(token_ids), _lengths(token_ids)
    if "spans" in columns:
        lengths, spans = columns["segment_lengths"], columns["spans"]
        sampled, num_segments, segment_lengths = _values(columns["sampled"]), _lengths(lengths), _values(lengths)
        fields = spans.flatten()
        table = np.stack([fields.field(name).to_numpy().astype(np.int64) for name in SPAN.names[1:]], 1)
        # The segment of each span, counted over all completions.
        places = np.repeat(np.cumsum(num_segments) - num_segments, _lengths(spans)) + fields.field("segment").to_numpy()
        num_spans = np.bincount(places, minlength=len(segment_lengths)).astype(np.int32)
    else:
        sampled, num_segments, segment_lengths = (
            np.ones(num_tokens.sum(), np.bool_),
            np.ones_like(num_tokens),
            num_tokens,
        )
        versions = [columns[name].to_numpy() for name in ("first_version", "last_version")]
        table = np.stack([np.zeros(num_completions, np.int64), num_tokens.astype(np.int64), *versions], 1)
        num_spans = np.ones_like(num_tokens)
    return PackedCompletions(
        token_ids=_values(token_ids),
        logprobs=_values(columns["logprobs"]),
        sampled=sampled,
        num_tokens=segment_lengths,
        num_spans=num_spans,
        num_segments=num_segments,
        spans=table,
        texts=columns["completion"].to_pylist(),
        finish_reasons=columns["finish_reason"].to_pylist(),
    ).unpack()


def _scores(columns: dict[str, pa.Array]) -> list[Score]:
    names = ("reward", "terms", "unscorable", "accuracy", "extracted")
    return [
        Score(reward, dict(terms), unscorable, accuracy, extracted)
        for reward, terms, unscorable, accuracy, extracted in zip(
            *(columns[name].to_pylist() for name in names), strict=True
        )
    ]
