"""Completions of every shape, for property tests."""

import numpy as np
from hypothesis import strategies as st

from volley.rollout.types import Completion, Segment, Span, as_token_ids

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(as_token_ids)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """Runs of sampled and of observed tokens in turn, as an episode with tool calls has them."""
    runs = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=4))
    sampled = np.repeat([is_sampled for is_sampled, _ in runs], [length for _, length in runs]).astype(np.bool_)
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(sampled), max_size=len(sampled)))
    logprobs = draw(
        st.lists(st.floats(width=32, max_value=0), min_size=len(sampled), max_size=len(sampled)).map(
            lambda values: np.array(values, np.float32)
        )
    )
    spans, start = [], 0
    for is_sampled, length in runs:
        if is_sampled:
            first = draw(st.integers(0, 10**6))
            spans.append(Span(start, start + length, first, first + draw(st.integers(0, 3))))
        start += length
    return Segment(as_token_ids(ids), np.where(sampled, logprobs, np.float32(0)), sampled, tuple(spans))


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    """Single turns and episodes; at least one span, so that every completion has a version."""
    reason = draw(st.sampled_from(["stop", "length"]))
    first = draw(st.integers(0, 10**6))
    ids = draw(token_ids)
    logprobs = np.array(draw(st.lists(st.floats(width=32, max_value=0), min_size=len(ids), max_size=len(ids))))
    single = Completion.single(ids, logprobs, draw(texts), reason, first, first + draw(st.integers(0, 3)))
    more = draw(st.just(()) | st.lists(segments(), max_size=3).map(tuple))
    return Completion((*single.segments, *more), single.text, reason)
