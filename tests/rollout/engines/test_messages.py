"""Messages between a remote engine and its worker keep order, errors and values."""

import pickle
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollout.completions import completions, texts, token_ids
from volley.rollout.engines.messages import Collected, Finished, Request, RequestBatch
from volley.rollout.types import Sampling

finished = st.builds(Finished, st.integers(1, 2**40), st.integers(0, 99), completions()) | st.builds(
    Finished, st.integers(1, 2**40), st.integers(0, 99), st.none(), texts
)
samplings = st.sampled_from([Sampling(), Sampling(8, 0.7, 0.9, 100, ("a", "b"))])
requests = st.builds(Request, st.integers(1, 2**40), token_ids, samplings, st.integers(0, 2**70))


def travelled(message: Any) -> Any:
    return pickle.loads(pickle.dumps(message, protocol=5))


@given(st.lists(finished, max_size=6), st.integers(-1, 2**40), texts)
@settings(max_examples=100, deadline=None)
def test_a_poll_brings_what_finished(some: Sequence[Finished], num_steps: int, dead: str) -> None:
    collected = travelled(Collected.pack(some, num_steps, dead))
    assert repr(collected.finished()) == repr(list(some))
    assert (collected.num_steps, collected.dead) == (num_steps, dead)


@given(st.lists(requests, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_batch_holds_its_requests(some: list[Request]) -> None:
    assert repr(travelled(RequestBatch.pack(some)).unpack()) == repr(some)
