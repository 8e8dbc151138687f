"""Win rate against counting and simulation; the warning about answers that got too short."""

import math
import random
from pathlib import Path
from typing import cast

import pytest

from cluster.against_start import chosen_warning, length_warning, win_rate
from cluster.config import parse_recipe
from cluster.evaluate import Evaluation, greedy_metrics
from cluster.metrics import EVALUATIONS, read_rows
from cluster.record import Record
from cluster.roll import Roller
from cluster.run_directory import RunDirectory
from rollout.types import Completion, Prompt, Score, ScoredGroup

NAN = math.nan


def test_ties_count_half_and_the_unscorable_are_left_out() -> None:
    found = win_rate([[1.0], [0.5], [0.0], [NAN], [1.0]], [[0.0], [0.5], [1.0], [1.0], [NAN]])
    assert (found.rate, found.wins, found.ties, found.losses, found.left_out) == (0.5, 1, 1, 1, 2)
    assert win_rate([[2.0], [1.0]], [[1.0], [1.0]]).rate == 0.75


def test_several_answers_are_compared_in_all_pairs() -> None:
    found = win_rate([[1.0, 0.0, NAN]], [[0.0, 0.0, 1.0]])
    assert found.rate == pytest.approx((2 + 0.5 + 2 * 0.5) / 6)
    assert win_rate([], []).rate is NAN
    with pytest.raises(ValueError, match="answers to 1 prompts now and to 2 at the start"):
        win_rate([[1.0]], [[1.0], [0.0]])


@pytest.mark.parametrize(("win", "loss"), [(0.05, 0.02), (0.5, 0.5), (0.9, 0.05), (0.01, 0.0), (0.3, 0.1)])
@pytest.mark.parametrize("number", [20, 200])
def test_the_interval_holds_the_truth_as_often_as_it_says(win: float, loss: float, number: int) -> None:
    draw = random.Random(number)
    held = 0
    for _ in range(1000):
        outcomes = draw.choices([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], [win, loss, 1 - win - loss], k=number)
        found = win_rate([[now] for now, _ in outcomes], [[start] for _, start in outcomes])
        assert 0.0 <= found.low <= found.rate <= found.high <= 1.0
        held += found.low <= 0.5 + (win - loss) / 2 <= found.high
    assert held >= 930


def test_certain_wins_of_few_prompts_stay_uncertain() -> None:
    assert win_rate([[1.0]] * 4, [[0.0]] * 4).low < 0.9
    equal = win_rate([[1.0]] * 4, [[1.0]] * 4)
    assert equal.low < 0.5 < equal.high


def evaluated(rights: list[float], lengths: list[int]) -> dict[str, float]:
    groups = [
        ScoredGroup(
            Prompt(0, 0, "", (1,), ""),
            (Completion((1,) * length, (-1.0,) * length, "", "stop", 0, 0),),
            (Score(right, {}, "", right),),
        )
        for right, length in zip(rights, lengths, strict=True)
    ]
    return greedy_metrics(groups, 4)


LENGTHS = [10, 20, 30, 40] * 50


@pytest.mark.parametrize(
    ("share_right", "shrinks", "warns"),
    [(0.5, 0.5, True), (0.5, 0.98, False), (0.5, 1.5, False), (0.86, 0.5, False), (0.9, 0.5, False), (1.0, 0.5, False)],
)
def test_shorter_and_wrong_where_length_is_needed(share_right: float, shrinks: float, warns: bool) -> None:
    """At the start 45 of the 50 longest answers are right."""
    start = evaluated([float(length < 40 or i < 180) for i, length in enumerate(LENGTHS)], LENGTHS)
    assert start["length_bucket_4/accuracy"] == 0.9
    rights = [float(length < 40 or i < 200 * share_right) for i, length in enumerate(LENGTHS)]
    warning = length_warning(start, evaluated(rights, [round(length * shrinks) for length in LENGTHS]))
    assert bool(warning) == warns
    assert not warns or "(25 to 12 tokens), but accuracy among the longest ones fell from 0.90 to 0.50" in warning


def test_what_is_not_known_never_warns() -> None:
    known = evaluated([1.0] * 200, LENGTHS)
    shorter = evaluated([0.0] * 200, [5] * 200)
    assert length_warning(known, shorter)
    assert not length_warning({}, shorter)
    assert not length_warning(known, {})
    assert not length_warning(known, shorter | {"length_bucket_4/accuracy": NAN})
    assert not length_warning({**known, "length_bucket_4/accuracy": None}, shorter)


def test_evaluations_of_a_run_have_it_also_after_a_resume(tmp_path: Path) -> None:
    recipe = parse_recipe({"name": "x", "model": "x", "data": {"train": "x"}, "steps": 9})

    def evaluate(done: int, step: int, rewards: list[float]) -> None:
        """By a process of its own each."""
        record = Record(RunDirectory(tmp_path), recipe, cast(Roller, None), done, lambda row: None)
        answers = (Completion((1,), (-1.0,), "", "stop", 0, 0),)
        groups = [ScoredGroup(Prompt(0, 0, "", (1,), ""), answers, (Score(reward, {}),)) for reward in rewards]
        record.evaluation(step, Evaluation({"pass@1": NAN}, tuple(groups)))
        record.close()

    evaluate(0, 0, [0.0, 0.0, 1.0, NAN])
    evaluate(0, 3, [1.0, 1.0, 1.0, 1.0])
    evaluate(3, 6, [1.0, 1.0])  # other prompts: nothing to compare
    rows = read_rows(tmp_path / EVALUATIONS)
    assert [row.get("win_rate") for row in rows] == [None, 2.5 / 3, None]
    assert rows[1]["win_rate_low"] < 2.5 / 3 < rows[1]["win_rate_high"]


@pytest.mark.parametrize(
    ("values", "warns"),
    [
        ([-1.0] * 20, False),
        ([-1.0, *[-1.02] * 19], False),
        ([-1.0] * 10 + [-1.3] * 10, True),
        ([], False),
        ([-1.0], False),
    ],
)
def test_chosen_answers_that_became_less_likely_are_told(values: list[float], warns: bool) -> None:
    rows = [{"step": i, "chosen_logprob": value} for i, value in enumerate(values)]
    sentence = chosen_warning([*rows, {"step": 99}, {"step": 100, "chosen_logprob": None}])
    assert ("less likely (-1.00 to -1.30 nats a token)" in sentence) == warns
    assert bool(sentence) == warns
