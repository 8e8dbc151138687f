"""Builders of rows and groups for the learner's tests, and what is in rows as plain Python values."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from volley.learner.signals.rows import Rows
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, Segment, Span, as_token_ids


class Row(NamedTuple):
    """A completion of one turn."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    staleness: int = 0


def rows_of(rows: Sequence[Row]) -> Rows:
    """Rows from plain values."""
    found = [
        Rows.from_completions(
            [
                (
                    as_token_ids(row.prompt_ids),
                    Completion.single(row.completion_ids, row.behaviour_logprobs, "", "stop", 0, 0),
                )
            ],
            row.staleness,
        )
        for row in rows
    ]
    return Rows.joined(found)


def row_values(rows: Rows) -> list[Row]:
    """The plain values of completions of one turn."""
    found = []
    for n in range(rows.num_completions):
        each = rows.part(n, n + 1)
        assert each.num_rows == 1
        trained = each.trained
        assert not trained.any() or trained[np.argmax(trained) :].all()
        logprobs = tuple(float(f"{value:.6g}") for value in each.logprobs[trained])
        found.append(
            Row(
                tuple(each.token_ids[~trained].tolist()),
                tuple(each.token_ids[trained].tolist()),
                logprobs,
                int(each.staleness[0]),
            )
        )
    return found


def segment(parts: Sequence[tuple[Sequence[int], bool]], first_logprob: float = -0.5, version: int = 0) -> Segment:
    """Runs of (tokens, whether they were sampled); each sampled token has a log-prob of its own."""
    ids = [token for tokens, _ in parts for token in tokens]
    sampled = [is_sampled for tokens, is_sampled in parts for _ in tokens]
    spans, start = [], 0
    for tokens, is_sampled in parts:
        if is_sampled:
            spans.append(Span(start, start + len(tokens), version, version))
        start += len(tokens)
    logprobs = [first_logprob - 0.1 * i if each else 0.0 for i, each in enumerate(sampled)]
    return Segment(
        as_token_ids(ids), np.array(logprobs, dtype=np.float32), np.array(sampled, dtype=np.bool_), tuple(spans)
    )


def group(
    ordinal: int, prompt_ids: Sequence[int], completions: Sequence[Completion], rewards: Sequence[float]
) -> ScoredGroup:
    """A scored group; NaN rewards are unscorable."""
    scores = tuple(Score(reward, {}, "" if reward == reward else "the reward raised") for reward in rewards)
    return ScoredGroup(Prompt(ordinal, ordinal, "text", as_token_ids(prompt_ids), "answer"), tuple(completions), scores)
