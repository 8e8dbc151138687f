"""What travels between a remote engine and its rollout worker: batches of requests, and what a poll brings back.

Both are packed into a few flat arrays, so that Ray passes tokens on as buffers instead of pickling them one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from volley.rollout.data.packed import PackedCompletions, joined
from volley.rollout.types import Completion, Sampling, TokenIds


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to sample from."""

    number: int
    """Unique among the requests of a remote engine."""
    token_ids: TokenIds
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """R requests with P prompt tokens together."""

    token_ids: TokenIds
    """[P]"""
    num_tokens: NDArray[np.int32]
    """[R]"""
    numbers: Sequence[int]
    """[R]"""
    seeds: Sequence[int]
    """[R]"""
    samplings: Sequence[Sampling]
    """[R]; pickle stores equal references once."""

    @classmethod
    def pack(cls, requests: Sequence[Request]) -> "RequestBatch":
        """The batch of `requests`, in their order."""
        return cls(
            token_ids=joined([request.token_ids for request in requests], np.int32),
            num_tokens=np.array([len(request.token_ids) for request in requests], np.int32),
            numbers=[request.number for request in requests],
            seeds=[request.seed for request in requests],
            samplings=[request.sampling for request in requests],
        )

    def unpack(self) -> list[Request]:
        """The requests. Their token ids are views into the batch."""
        ends = list(accumulate(self.num_tokens.tolist(), initial=0))
        return [
            Request(number, self.token_ids[begin:end], sampling, seed)
            for number, begin, end, sampling, seed in zip(
                self.numbers, ends, ends[1:], self.samplings, self.seeds, strict=False
            )
        ]


@dataclass(frozen=True, slots=True)
class Finished:
    """One sample of a request: its completion, or the error that ended it."""

    number: int
    """The request's."""
    sample: int
    completion: Completion | None
    error: str = ""
    """"" if there is a completion."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a poll brings: F finished samples, and whether the engine is alive."""

    numbers: NDArray[np.int64]
    """[F]"""
    samples: NDArray[np.int64]
    """[F]"""
    completions: PackedCompletions
    """Those of the samples without an error, in their order."""
    errors: Mapping[int, str]
    """Place among the finished samples -> the error that ended it."""
    num_steps: int
    """Engine steps so far. A hung engine is detected by this counter."""
    dead: str = ""
    """Why the engine will not answer any more, "" while it lives."""

    @classmethod
    def pack(cls, finished: Sequence[Finished], num_steps: int, dead: str = "") -> "Collected":
        """The answer to a poll."""
        return cls(
            numbers=np.array([each.number for each in finished], np.int64),
            samples=np.array([each.sample for each in finished], np.int64),
            completions=PackedCompletions.pack([each.completion for each in finished if each.completion is not None]),
            errors={place: each.error for place, each in enumerate(finished) if each.completion is None},
            num_steps=num_steps,
            dead=dead,
        )

    def finished(self) -> list[Finished]:
        """The samples, in the order in which they were packed."""
        completions = iter(self.completions.unpack())
        return [
            Finished(number, sample, None, self.errors[place])
            if place in self.errors
            else Finished(number, sample, next(completions))
            for place, (number, sample) in enumerate(zip(self.numbers.tolist(), self.samples.tolist(), strict=True))
        ]
