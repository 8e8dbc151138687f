"""`runs/NAME/report.html`: the whole run on one page that needs no network, made of what the run left on disk.

Everything a model wrote is hostile text: it gets into the page only inside one JSON block in which `<` is escaped, and
the page's script sets it as text, never as HTML.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.metrics import EVALUATIONS, METRICS, read_rows
from rollout.arrow import read_groups
from rollout.errors import CheckpointError
from rollout.types import Completion, Score, ScoredGroup

TEMPLATE = Path(__file__).with_name("report.html")
CHARTS: dict[str, dict[str, str]] = {
    "Reward": {"reward_mean": "reward"},
    "Accuracy in training": {"accuracy": "accuracy", "no_answer_share": "no answer found"},
    "Loss": {"loss": "loss"},
    "Response length, tokens": {"response_length_mean": "tokens"},
    "Truncated share": {"truncated_share": "share"},
    "Entropy, nats": {"entropy": "entropy"},
    "KL, nats": {"kl": "KL"},
    "Clipped share of tokens": {"clip_share": "share"},
    "Gradient norm": {"grad_norm": "norm"},
    "Explained variance of returns": {"explained_variance": "share"},
    "Learning rate": {"lr": "rate"},
    "Log-prob mismatch on fresh samples, nats": {"logprob_mismatch_mean": "mean"},
    "Log-prob parity after a push, nats": {"parity_mean": "mean"},
    "Staleness, versions": {"staleness_max": "oldest"},
    "Groups without signal, share": {"zero_variance_share": "share"},
    "Seconds per step": {
        "seconds/generate": "generate",
        "seconds/update": "update",
        "seconds/wait": "wait",
        "seconds/publish": "publish",
        "seconds/score": "score",
    },
    "Samples per second": {"samples_per_s": "samples/s"},
    "Padding share": {"padding_share": "share"},
    "Peak memory, bytes": {"peak_memory_bytes": "bytes"},
}
NUM_GROUPS = 3
NUM_ANSWERS = 4
MAX_CHARACTERS = 1500


def write_report(run_dir: Path) -> Path:
    """Write the page and return its path. Raises `CheckpointError` where there is no run or it has no step yet."""
    rows, evaluations = read_rows(run_dir / METRICS), read_rows(run_dir / EVALUATIONS)
    if not rows:
        raise CheckpointError(f"'{run_dir}' holds no run with a finished step, so there is nothing to report yet.")
    recipe = run_dir / "recipe.yaml"
    data = {
        "name": run_dir.name,
        "subtitle": f"{len(rows)} steps in {_duration(rows[-1]['wall_s'])}",
        "figures": _figures(rows, evaluations),
        "charts": _charts(rows, evaluations),
        "evaluations": _evaluations(evaluations),
        "samples": _samples(run_dir),
        "recipe": recipe.read_text() if recipe.exists() else "",
        "accounting": {name: rows[-1][name] for name in rows[-1] if _is_count(name)},
    }
    # `<` cannot end the script block or start a comment once it is escaped.
    text = json.dumps(data).replace("<", "\\u003c")
    path = run_dir / "report.html"
    path.write_text(TEMPLATE.read_text().replace("__DATA__", text))
    return path


def _is_count(name: str) -> bool:
    return name in ("issued", "trained", "queued", "in_flight", "unscorable") or name.startswith("dropped/")


def _figures(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    figures = []
    if evaluations and evaluations[-1].get("pass@1") is not None:
        figures.append(("held-out pass@1", f"{evaluations[0]['pass@1']:.2f} → {evaluations[-1]['pass@1']:.2f}"))
    rewards = [row["reward_mean"] for row in rows if row.get("reward_mean") is not None]
    if len(set(rewards)) > 1:
        edge = max(1, len(rewards) // 20)
        first, last = sum(rewards[:edge]) / edge, sum(rewards[-edge:]) / edge
        figures.append(("mean reward", f"{first:.2f} → {last:.2f}"))
    samples = sum(row["samples"] for row in rows)
    figures.append(("samples trained on", f"{samples:,}"))
    figures.append(("samples per second", f"{samples / rows[-1]['wall_s']:.0f}"))
    figures.append(("wall time", _duration(rows[-1]["wall_s"])))
    return figures


def _charts(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    charts = []
    held_out = _points(evaluations, "pass@1")
    if len(held_out) > 1:
        charts.append({"title": "Held-out pass@1", "series": [{"label": "pass@1", "points": held_out}]})
    terms = {name: name.removeprefix("reward/") for name in rows[-1] if name.startswith("reward/")}
    for title, names in {**CHARTS, "Reward terms": terms}.items():
        series = [{"label": label, "points": _points(rows, name)} for name, label in names.items()]
        series = [each for each in series if len(each["points"]) > 1]
        if series:
            charts.append({"title": title, "series": series})
    return charts


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _evaluations(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first, the last, and a few between."""
    if not evaluations:
        return {"head": [], "rows": []}
    names = list(evaluations[-1])
    chosen = sorted({round(i * (len(evaluations) - 1) / 9) for i in range(10)})
    return {"head": names, "rows": [[evaluations[i].get(name) for name in names] for i in chosen]}


def _samples(run_dir: Path) -> list[dict[str, Any]]:
    files = sorted((run_dir / "rollouts").glob("step-*.parquet"))
    if not files:
        return []
    chosen = [files[0], files[-1]] if len(files) > 1 else files
    return [
        {
            "title": f"Step {int(path.stem.removeprefix('step-'))}",
            "groups": [_group(group) for group in read_groups(path)[:NUM_GROUPS]],
        }
        for path in chosen
    ]


def _group(group: ScoredGroup) -> dict[str, Any]:
    pairs = list(zip(group.completions, group.scores, strict=True))[:NUM_ANSWERS]
    answer = f"  (answer: {group.prompt.answer})" if group.prompt.answer else ""
    return {"prompt": _clip(group.prompt.text) + answer, "answers": [_answer(c, s) for c, s in pairs]}


def _answer(completion: Completion, score: Score) -> dict[str, str]:
    verdict = {1.0: "good", 0.0: "bad"}.get(score.accuracy, "")
    terms = ", ".join(f"{name} {value:.2g}" for name, value in score.terms.items())
    reward = f"unscorable: {score.unscorable}" if score.unscorable else f"reward {score.reward:.2f}"
    note = f"{reward}{f' ({terms})' if terms else ''} · {len(completion.token_ids)} tokens"
    return {
        "text": _clip(completion.text),
        "verdict": verdict,
        "note": note + (" · cut off" if completion.truncated else ""),
    }


def _clip(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
