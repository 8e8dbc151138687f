"""Completions as flat arrays: the round trip, and what a message costs."""

import pickle
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollout.completions import completions
from volley.rollout.data.packed import PackedCompletions
from volley.rollout.types import Completion


@given(st.lists(completions(), max_size=5))
@settings(max_examples=150, deadline=None)
def test_round_trip_is_exact(some: list[Completion]) -> None:
    found = pickle.loads(pickle.dumps(PackedCompletions.pack(some), protocol=5)).unpack()
    assert repr(found) == repr(some)  # NaN equals NaN, 0.0 does not equal -0.0
    for one, same in zip(found, some, strict=True):
        assert [segment.token_ids.dtype for segment in one.segments] == [np.int32] * len(same.segments)
        assert [segment.logprobs.dtype for segment in one.segments] == [np.float32] * len(same.segments)
        assert [segment.sampled.dtype for segment in one.segments] == [np.bool_] * len(same.segments)


def test_a_message_has_few_buffers_and_unpacking_copies_none_of_them() -> None:
    some = [Completion.single(range(i), [-0.5] * i, "text", "stop", 0, 1) for i in range(200, 300)]
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(PackedCompletions.pack(some), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) <= 7
    assert len(message) < 50 * len(some)  # in band: nothing that grows with the number of tokens
    found: list[Any] = pickle.loads(message, buffers=buffers).unpack()
    assert found == some
    bases = {id(completion.segments[0].token_ids.base) for completion in found}
    assert len(bases) == 1
