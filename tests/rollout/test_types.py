"""Completions with one and with several segments."""

import numpy as np
import pytest
from hypothesis import given, settings

from tests.rollout.completions import completions
from volley.rollout.types import Completion, Prompt, Segment, Span, as_logprobs, as_token_ids


def episode() -> Completion:
    """Two sampled runs around an observation, and a second segment that begins with a rewritten context."""
    first = Segment(
        as_token_ids([5, 6, 7, 8, 9]),
        as_logprobs([-1.0, -2.0, 0.0, 0.0, -3.0]),
        np.array([True, True, False, False, True]),
        (Span(0, 2, 3, 3), Span(4, 5, 3, 4)),
    )
    second = Segment(as_token_ids([1, 2]), as_logprobs([0.0, -4.0]), np.array([False, True]), (Span(1, 2, 5, 6),))
    return Completion((first, second), "text", "stop")


def test_a_single_turn_is_one_segment_of_sampled_tokens() -> None:
    completion = Completion.single([4, 5], [-0.5, -0.25], "hi", "length", 3, 4)
    (segment,) = completion.segments
    assert (segment.sampled.tolist(), segment.spans) == ([True, True], (Span(0, 2, 3, 4),))
    assert (segment.token_ids.dtype, segment.logprobs.dtype, segment.sampled.dtype) == (np.int32, np.float32, np.bool_)
    assert (completion.num_sampled, completion.first_version, completion.last_version) == (2, 3, 4)
    assert completion.truncated


def test_an_episode_counts_sampled_tokens_and_covers_all_versions() -> None:
    completion = episode()
    assert (completion.num_sampled, completion.first_version, completion.last_version) == (4, 3, 6)
    assert completion.token_ids.tolist() == [5, 6, 7, 8, 9, 1, 2]
    assert completion.token_ids[completion.sampled].tolist() == [5, 6, 9, 2]


@given(completions())
@settings(max_examples=50, deadline=None)
def test_the_mask_and_the_spans_agree(completion: Completion) -> None:
    assert completion.num_sampled == completion.sampled.sum()
    assert not completion.logprobs[~completion.sampled].any()


def test_equality_compares_contents() -> None:
    assert episode() == episode()
    changed = Completion(episode().segments[:1], "text", "stop")
    assert episode() != changed
    prompts = [Prompt(0, 0, "a", as_token_ids(ids), "") for ids in ([1, 2], [1, 2], [1, 3])]
    assert prompts[0] == prompts[1] != prompts[2]


def test_token_ids_do_not_wrap_around() -> None:
    with pytest.raises(OverflowError):
        as_token_ids([2**31])
