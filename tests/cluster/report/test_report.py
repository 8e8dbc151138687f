"""Tests of the report in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from volley.cluster.report.report import write_report
from volley.rollout.data.parquet import write_groups
from volley.rollout.errors import CheckpointError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!--"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of 60 steps whose model writes HTML and scripts."""
    directory = tmp_path / "my-run"
    (directory / "rollouts").mkdir(parents=True)
    rows = [
        {
            "step": step,
            "wall_s": step * 1.5,
            "samples": 32,
            "reward_mean": step / 60,
            "response_length_mean": 20.0,
            "accuracy": step / 70,
            "entropy": 1 / step,
            "seconds/generate": 0.4,
            "seconds/update": 0.6,
            "kl": None,
            "chosen_logprob": -step / 10,
            "rejected_logprob": -step / 5,
            "implicit_reward_chosen": 1.0,
            "implicit_reward_rejected": -1.0,
            "implicit_margin": 2.0,
            "preference_accuracy": 0.9,
            "pair_yield": 1.0,
            "response_length_ratio": 1.0,
            "issued": step * 4,
            "trained": step * 4,
            "dropped/tied": 0,
        }
        for step in range(1, 61)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluations = [{"step": step, "pass@1": step / 100} for step in range(0, 61, 20)]
    for row in evaluations[1:]:
        row |= {"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7}
    (directory / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    (directory / "recipe.yaml").write_text(f"name: my-run  # {HOSTILE}\n")
    completion = Completion.single((1, 2), (-1.0, -1.0), HOSTILE, "stop", 0, 0)
    group = ScoredGroup(
        Prompt(0, 0, HOSTILE, as_token_ids((1,)), "4"), (completion,), (Score(1.0, {"math": 1.0}, accuracy=1.0),)
    )
    for step in (1, 60):
        write_groups(directory / "rollouts" / f"step-{step:06d}.parquet", [group], step)
    return directory


def test_browser_draws_charts_and_does_not_execute_model_output(run_dir: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on the path; install one to test the report in a browser")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = (
        f"--disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --virtual-time-budget=3000"
    )
    page = subprocess.run(
        [browser, *flags.split(), *more.split(), "--dump-dom", write_report(run_dir).as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    curves = {
        title: re.findall(r'<path class="line" d="([^"]*)"', chart)
        for title, chart in re.findall(r'data-metric="([^"]*)"(.*?)</figure>', page, re.S)
    }
    family = {
        "Implicit reward": 2,
        "Implicit margin": 1,
        "Preference accuracy in training": 1,
        "Log-prob per token, nats": 2,
        "Share of groups with a pair": 1,
        "Response length, ratio to step 1": 1,
        "Win rate against initial policy": 3,
    }
    assert {title: len(curves.get(title, ())) for title in family} == family
    assert "less likely (-0.35 to -5.75 nats per token), and the rejected fell faster" in page
    assert curves["Reward"][0].count("L") == 59
    assert curves["Held-out pass@1"][0].count("L") == 3
    assert len(curves["Seconds per step"]) == 2
    assert "KL, nats" not in curves
    assert "<title>my-run · Volley</title>" in page, "the model's text ran as a script"
    assert "<img" not in page
    assert "0.00 → 0.60" in page


def test_page_loads_nothing_from_the_network(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", text)
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}


def test_offline_runs_show_no_reward_chart(run_dir: Path) -> None:
    """The metrics of an offline run have no response length."""
    assert {"Reward", "mean reward"} <= report_titles(run_dir)
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "response_length_mean"}) + "\n" for row in rows)
    )
    assert not {"Reward", "mean reward"} & report_titles(run_dir)


def report_titles(run_dir: Path) -> set[str]:
    """Titles of the charts and labels of the key figures."""
    text = write_report(run_dir).read_text().split('id="data">')[1].split("</script>")[0]
    data = json.loads(text)
    return {chart["title"] for chart in data["charts"]} | {label for label, _ in data["figures"]}


def test_missing_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no run with a finished step"):
        write_report(tmp_path / "nothing")
