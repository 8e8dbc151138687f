import io
import math
from pathlib import Path

import pytest

from volley.cluster.report.inspect_run import inspect
from volley.rollout.data.parquet import write_groups
from volley.rollout.errors import ConfigError, DataError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids


def completion(text: str, reason: str = "stop") -> Completion:
    return Completion.single((1, 2, 3), (-0.5,) * 3, text, reason, 4, 5)


def group(ordinal: int, *accuracies: float) -> ScoredGroup:
    prompt = Prompt(ordinal, ordinal, f"question {ordinal}\nsecond line", as_token_ids((1, 2)), "18", {})
    scores = [
        Score(math.nan, {"math": math.nan}, "the reward hung")
        if math.isnan(accuracy)
        else Score(1.1 * accuracy, {"math": accuracy, "form": 0.5}, "", accuracy, f"{accuracy:g}")
        for accuracy in accuracies
    ]
    texts = [completion(f"try {ordinal}.{i}", "length" if i == 1 else "stop") for i in range(len(scores))]
    return ScoredGroup(prompt, tuple(texts), tuple(scores))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "rollouts").mkdir()
    for step in (1, 2, 3, 7):
        groups = [group(step * 10, 1.0, 0.0), group(step * 10 + 1, 1.0, 1.0), group(step * 10 + 2, math.nan)]
        write_groups(tmp_path / "rollouts" / f"step-{step:06d}.parquet", groups, step)
    return tmp_path


def printed(run: Path, step: int | None = None, limit: int = 9, only: str | None = None) -> str:
    stream = io.StringIO()
    inspect(run, step, limit, only, stream)
    return stream.getvalue()


def test_last_step_is_the_default(run: Path) -> None:
    text = printed(run)
    assert text.startswith(f"{run}, step 7: 3 groups, 5 completions · reward 0.825 · accuracy 0.75 · ")
    assert text.splitlines()[0].endswith("2 truncated · 1 unscorable")
    assert "\n      question 70\n      second line\n" in text
    assert (
        "[1] reward 1.1 · math 1 · form 0.5 · right · extracted 1 · 3 tokens · weights 4 to 5\n      try 70.0" in text
    )
    assert "[2] reward 0 · math 0 · form 0.5 · wrong · extracted 0 · 3 tokens · weights 4 to 5 · TRUNCATED" in text
    assert "unscorable: the reward hung · math nan · 3 tokens" in text
    assert text.endswith("3 of 3 groups shown\n")
    assert "\x1b" not in text


def test_step_and_limit(run: Path) -> None:
    text = printed(run, step=2, limit=1)
    assert "question 20" in text
    assert "question 21" not in text
    assert text.endswith("1 of 3 groups shown\n")


@pytest.mark.parametrize(
    ("only", "shown", "hidden", "last"),
    [
        ("wrong", ["try 70.1"], ["try 70.0", "try 71.0", "try 72.0"], "1 of 1 groups with wrong completions shown"),
        ("right", ["try 70.0", "try 71.1"], ["try 70.1", "try 72.0"], "2 of 2 groups with right completions shown"),
        ("unscorable", ["try 72.0"], ["try 70.0"], "1 of 1 groups with unscorable completions shown"),
    ],
)
def test_only_prints_matching_completions(run: Path, only: str, shown: list[str], hidden: list[str], last: str) -> None:
    text = printed(run, only=only)
    assert all(part in text for part in shown)
    assert not any(part in text for part in hidden)
    assert last in text


def test_control_characters_and_markup_are_escaped(run: Path) -> None:
    hostile = ScoredGroup(
        Prompt(0, 0, "p", as_token_ids((1,)), "", {}), (completion("[red]a[/red]\x1b[2J\rb\x9b\tc"),), (Score(1.0, {}),)
    )
    write_groups(run / "rollouts" / "step-000009.parquet", [hostile], 9)
    text = printed(run)
    assert "[red]a[/red]\\x1b[2J\\x0db\\x9b" in text
    assert "\x1b" not in text


def test_colours_are_used_only_in_a_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    inspect(run, None, 3, None, stream)
    assert "\x1b[32m" in stream.getvalue()


def test_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        printed(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"has no rollouts of step 5; available steps: 1-3, 7\."):
        printed(run, step=5)
    with pytest.raises(ConfigError, match="must be right, wrong or unscorable"):
        printed(run, only="best")
    (tmp_path / "fresh").mkdir()
    with pytest.raises(ConfigError, match="has no rollouts; they are written after the first step"):
        printed(tmp_path / "fresh")
    (run / "rollouts" / "step-000008.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="is not a readable file of samples"):
        printed(run)
