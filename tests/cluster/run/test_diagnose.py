"""The arithmetic of asynchronous speed-up, and that the advice follows the longer side."""

import pytest

from volley.cluster.run.diagnose import Diagnosis, diagnose, explain


def rows(step: float, **seconds: float) -> list[dict[str, float]]:
    slow = {"samples": 64, "samples_per_s": 1.0, "seconds/generate": 50.0}
    row = {"samples": 64, "samples_per_s": 64 / step, **{f"seconds/{name}": value for name, value in seconds.items()}}
    return [slow, slow] + [row] * 10


def test_times_are_medians_without_the_first_steps() -> None:
    found = diagnose(rows(3.0, generate=2.0, score=0.1, wait=2.0, update=0.75, publish=0.25))
    assert found == Diagnosis(2.0, 0.1, 2.0, 0.75, 0.25, pytest.approx(3.0))
    assert found.bound == pytest.approx(3.0 / 2.0)
    assert found.reached == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("found", "staleness", "word"),
    [
        (Diagnosis(1.0, 0, 1.0, 0.9, 0.1, 2.0), 0, "max_staleness: 1"),
        (Diagnosis(3.0, 0, 2.0, 0.9, 0.1, 3.1), 1, "3 times as many rollout.workers"),
        (Diagnosis(1.0, 0, 0.0, 2.9, 0.1, 3.1), 1, "learner.ranks"),
        (Diagnosis(1.0, 0, 0.0, 0.5, 0.5, 1.2), 1, "publish_every"),
        (Diagnosis(1.0, 0.8, 0.0, 0.9, 0.1, 1.2), 1, "scorer.workers"),
        (Diagnosis(1.0, 0, 0.0, 0.9, 0.1, 1.9), 1, "max_staleness: 2"),
        (Diagnosis(1.0, 0, 0.0, 0.9, 0.1, 1.05), 1, "balanced"),
    ],
)
def test_advice(found: Diagnosis, staleness: int, word: str) -> None:
    lines = explain(found, staleness, is_cluster=True)
    assert word in lines[-1]
    assert f"{found.bound:.2f}x" in lines[1]


def test_no_diagnosis_of_too_few_steps() -> None:
    assert diagnose(rows(1.0)[:4]) is None
    assert diagnose(rows(1.0, update=1.0)) is None
