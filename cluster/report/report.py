"""Write `runs/NAME/report.html`: a run on one self-contained page, made from the files of its run directory.

Text from a model is untrusted. It enters the page only inside one JSON block in which `<` is escaped, and the page's
script inserts it as text, never as HTML.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from volley.cluster.loop.win_rate import run_warnings
from volley.cluster.report.charts import has_sampled_responses, make_charts
from volley.cluster.storage.metrics import EVALUATIONS, METRICS, read_rows
from volley.rollout.data.parquet import read_groups
from volley.rollout.errors import CheckpointError
from volley.rollout.types import Completion, Score, ScoredGroup

TEMPLATE = Path(__file__).with_name("report.html")
HEADLINES = {
    "pass@1": "held-out pass@1",
    "preference_accuracy": "held-out preference accuracy",
    "label_accuracy": "held-out label accuracy",
}
NUM_GROUPS = 3
NUM_RESPONSES = 4
MAX_CHARACTERS = 1500


def write_report(run_dir: Path) -> Path:
    """Write the page and return its path. Raises `CheckpointError` if there is no run or it has no finished step."""
    rows, evaluations = read_rows(run_dir / METRICS), read_rows(run_dir / EVALUATIONS)
    if not rows:
        raise CheckpointError(f"'{run_dir}' has no run with a finished step, so there is nothing to report yet.")
    recipe = run_dir / "recipe.yaml"
    data = {
        "name": run_dir.name,
        "subtitle": f"{len(rows)} steps in {_duration(rows[-1]['wall_s'])}",
        "figures": _figures(rows, evaluations),
        "warnings": run_warnings(rows, evaluations, _loss_name(recipe)),
        "charts": make_charts(rows, evaluations),
        "evaluations": _evaluations(evaluations),
        "samples": _samples(run_dir),
        "recipe": recipe.read_text() if recipe.exists() else "",
        "accounting": {name: rows[-1][name] for name in rows[-1] if _is_count(name)},
    }
    # An escaped `<` cannot end the script block or start a comment.
    text = json.dumps(data).replace("<", "\\u003c")
    path = run_dir / "report.html"
    path.write_text(TEMPLATE.read_text().replace("__DATA__", text))
    return path


def _loss_name(recipe: Path) -> str:
    """The name of the recipe's loss, or ""."""
    try:
        loss = yaml.safe_load(recipe.read_text())["loss"]
        return str(loss["name"] if isinstance(loss, dict) else loss)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def _is_count(name: str) -> bool:
    return name in ("issued", "trained", "queued", "in_flight", "unscorable") or name.startswith("dropped/")


def _figures(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Labels and values of the key figures at the top of the page."""
    figures = [
        (label, f"{evaluations[0][name]:.2f} → {evaluations[-1][name]:.2f}")
        for name, label in HEADLINES.items()
        if len(evaluations) > 1 and None not in (evaluations[0].get(name), evaluations[-1].get(name))
    ]
    if evaluations and evaluations[-1].get("win_rate") is not None:
        figures.append(("win rate against initial policy", f"{evaluations[-1]['win_rate']:.2f}"))
    rewards = [row["reward_mean"] for row in rows if row.get("reward_mean") is not None]
    if len(set(rewards)) > 1 and has_sampled_responses(rows):
        edge = max(1, len(rewards) // 20)
        first, last = sum(rewards[:edge]) / edge, sum(rewards[-edge:]) / edge
        figures.append(("mean reward", f"{first:.2f} → {last:.2f}"))
    samples = sum(row["samples"] for row in rows)
    figures.append(("samples trained on", f"{samples:,}"))
    figures.append(("samples per second", f"{samples / rows[-1]['wall_s']:.0f}"))
    figures.append(("wall time", _duration(rows[-1]["wall_s"])))
    return figures


def _evaluations(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A table of at most ten evaluations, evenly spaced, including the first and the last."""
    if not evaluations:
        return {"head": [], "rows": []}
    # Per-bucket columns come last, so that the other ones are visible without scrolling.
    names = sorted(evaluations[-1], key=lambda name: name.startswith("length_bucket"))
    chosen = sorted({round(i * (len(evaluations) - 1) / 9) for i in range(10)})
    return {"head": names, "rows": [[evaluations[i].get(name) for name in names] for i in chosen]}


def _samples(run_dir: Path) -> list[dict[str, Any]]:
    """Sampled groups of the first and the last step."""
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
    pairs = list(zip(group.completions, group.scores, strict=True))[:NUM_RESPONSES]
    answer = f"  (answer: {group.prompt.answer})" if group.prompt.answer else ""
    return {"prompt": _clip(group.prompt.text) + answer, "answers": [_answer(c, s) for c, s in pairs]}


def _answer(completion: Completion, score: Score) -> dict[str, str]:
    verdict = {1.0: "good", 0.0: "bad"}.get(score.accuracy, "")
    terms = ", ".join(f"{name} {value:.2g}" for name, value in score.terms.items())
    reward = f"unscorable: {score.unscorable}" if score.unscorable else f"reward {score.reward:.2f}"
    note = f"{reward}{f' ({terms})' if terms else ''} · {completion.num_sampled} tokens"
    return {
        "text": _clip(completion.text),
        "verdict": verdict,
        "note": note + (" · truncated" if completion.truncated else ""),
    }


def _clip(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
