"""When the two sides of a self-play round count as indistinguishable."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from volley.cluster.loop.rounds import distinguishability
from volley.cluster.recipe.config import parse_recipe
from volley.cluster.run.recorder import RunRecorder
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.metrics import METRICS
from volley.cluster.storage.writer import Writer


def step(pairs: int, accuracy: float | None, same: int = 0) -> dict[str, Any]:
    return {"pairs": pairs, "pairs_same": same} | ({} if accuracy is None else {"preference_accuracy": accuracy})


@pytest.mark.parametrize(
    ("rows", "accuracy"),
    [
        ([step(0, None, 4)] * 4, 0.5),  # every answer is the demonstration, so there is nothing to train on
        ([step(0, None, 4), step(0, None, 4), step(4, 1.0), step(0, None, 4)], 0.75),
        ([step(1, 1.0, 7)] * 2, (1 + 3.5) / 8),
        ([step(6, 1.0, 2), step(2, 0.5, 6)], 0.5),  # the second half alone
        ([step(8, 0.9), step(2, 0.0), step(6, 1.0)], 0.75),  # pairs weigh the same, not steps
        ([step(0, None)] * 4, 1.0),
        ([{"loss": 0.1}] * 2, 1.0),
    ],
)
def test_distinguishability(rows: list[dict[str, Any]], accuracy: float) -> None:
    assert distinguishability(rows) == pytest.approx(accuracy)


def test_a_run_resumed_within_a_round_judges_the_whole_round(tmp_path: Path) -> None:
    recipe = parse_recipe({"name": "run", "model": "m", "data": {"train": "t"}, "steps": 8})
    accuracies = [1.0, 1.0, 0.5, 0.4, 1.0, 1.0]  # the last two steps came after the checkpoint, and are done again
    rows = [{"step": n, "response_length_mean": 3.0, **step(2, each)} for n, each in enumerate(accuracies, 1)]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def judged() -> float:
        recorder = RunRecorder(RunDirectory(tmp_path), recipe, Writer(), 4)
        try:
            return await recorder.distinguishability(4)
        finally:
            await recorder.close()

    assert asyncio.run(judged()) == pytest.approx(0.45)
