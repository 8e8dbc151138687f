"""The progress line of a run."""

import io
import math

from volley.cluster.run.progress import Progress

ROW = {"step": 1, "reward_mean": 0.5, "accuracy": math.nan, "samples": 8, "completion_tokens": 80, "samples_per_s": 2.0}


def test_progress_is_quiet_without_a_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(9, stream=stream)
    progress.evaluation({"pass@1": 0.25})
    for step in range(1, 10):
        progress.step({**ROW, "step": step})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 1/9  reward 0.50  2 samples/s  20 tokens/s  pass@1 0.25")
    assert "accuracy" not in lines[0]
    assert lines[1].startswith("step 9/9")
