"""Completions as a few flat arrays: what travels between processes and is written to disk.

Many completions become one array of token ids, one of log-probs and one mask, with lengths to cut them apart again.
A message of any size therefore holds a handful of buffers, which Ray and Arrow pass on without copying, instead of an
array (or worse, a Python object per token) for every completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volley.rollout.types import Completion, Logprobs, Mask, Segment, Span, TokenIds

Counts = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackedCompletions:
    """C completions with N segments, K spans and L tokens together."""

    token_ids: TokenIds
    """[L]"""
    logprobs: Logprobs
    """[L]"""
    sampled: Mask
    """[L]"""
    num_tokens: Counts
    """[N], tokens per segment."""
    num_spans: Counts
    """[N], spans per segment."""
    num_segments: Counts
    """[C], segments per completion."""
    spans: NDArray[np.int64]
    """[K, 4], the fields of `Span`."""
    texts: Sequence[str]
    """[C]"""
    finish_reasons: Sequence[str]
    """[C]"""

    @classmethod
    def pack(cls, completions: Sequence[Completion]) -> "PackedCompletions":
        """The arrays of `completions`, in their order."""
        segments = [segment for completion in completions for segment in completion.segments]
        spans = [
            (span.start, span.end, span.first_version, span.last_version)
            for segment in segments
            for span in segment.spans
        ]
        return cls(
            token_ids=joined([segment.token_ids for segment in segments], np.int32),
            logprobs=joined([segment.logprobs for segment in segments], np.float32),
            sampled=joined([segment.sampled for segment in segments], np.bool_),
            num_tokens=np.array([len(segment.token_ids) for segment in segments], np.int32),
            num_spans=np.array([len(segment.spans) for segment in segments], np.int32),
            num_segments=np.array([len(completion.segments) for completion in completions], np.int32),
            spans=np.array(spans, np.int64).reshape(-1, 4),
            texts=[completion.text for completion in completions],
            finish_reasons=[completion.finish_reason for completion in completions],
        )

    def unpack(self) -> list[Completion]:
        """The completions. Their arrays are views into the packed ones."""
        spans = [Span(*fields) for fields in self.spans.tolist()]
        segments: list[Segment] = []
        token = span = 0
        for num_tokens, num_spans in zip(self.num_tokens.tolist(), self.num_spans.tolist(), strict=True):
            tokens = slice(token, token := token + num_tokens)
            own_spans = tuple(spans[span : (span := span + num_spans)])
            segments.append(Segment(self.token_ids[tokens], self.logprobs[tokens], self.sampled[tokens], own_spans))
        ends = list(accumulate(self.num_segments.tolist(), initial=0))
        return [
            Completion(tuple(segments[begin:end]), text, finish_reason)
            for begin, end, text, finish_reason in zip(ends, ends[1:], self.texts, self.finish_reasons, strict=False)
        ]


def joined(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """The arrays one after the other; an empty array of `dtype` for no arrays."""
    return np.concatenate(arrays, dtype=dtype) if arrays else np.empty(0, dtype)
