"""`runs/NAME/report.html`: the whole run on one page that needs no network, made of what the run left on disk.

Everything a model wrote is hostile text: it gets into the page only inside one JSON block in which `<` is escaped, and
the page's script sets it as text, never as HTML.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from volley.cluster.loop.against_start import warnings
from volley.cluster.storage.metrics import EVALUATIONS, METRICS, read_rows
from volley.rollout.data.parquet import read_groups
from volley.rollout.errors import CheckpointError
from volley.rollout.types import Completion, Score, ScoredGroup

TEMPLATE = Path(__file__).with_name("report.html")
CHARTS: dict[str, dict[str, str]] = {
    "Reward": {"reward_mean": "reward"},
    "Implicit reward": {
        "implicit_reward_chosen": "chosen",
        "implicit_reward_rejected": "rejected",
        "implicit_reward_desirable": "desirable",
        "implicit_reward_undesirable": "undesirable",
    },
    "Implicit margin": {"implicit_margin": "margin"},
    "Preference accuracy in training": {"preference_accuracy": "pairs", "label_accuracy": "labels"},
    "Log-prob of a token, nats": {"chosen_logprob": "chosen", "rejected_logprob": "rejected"},
    "Groups that gave pairs, share": {"pair_yield": "share"},
    "Groups without a pair": {
        "pairs_dropped/tied": "tied",
        "pairs_dropped/unscorable": "unscorable",
        "pairs_dropped/same": "same text",
    },
    "Length in pairs, tokens": {"chosen_length_mean": "chosen", "rejected_length_mean": "rejected"},
    "Desirable share": {"desirable_share": "share"},
    "Accuracy in training": {"accuracy": "accuracy", "no_answer_share": "no answer found"},
    "Loss": {"loss": "loss"},
    "Response length, tokens": {"response_length_mean": "tokens"},
    "Response length, ratio to step 1": {"response_length_ratio": "ratio"},
    "Truncated share": {"truncated_share": "share"},
    "Entropy, nats": {"entropy": "entropy"},
    "KL, nats": {"kl": "KL", "kl_baseline": "baseline"},
    "Age of the reference, steps": {"reference_age": "age"},
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
HELD_OUT = {
    "Held-out pass@1": {"pass@1": "pass@1"},
    "Held-out preference accuracy": {"preference_accuracy": "pairs", "label_accuracy": "labels"},
    "Held-out loss": {"loss": "loss"},
    "Win rate against the start": {"win_rate": "mean", "win_rate_low": "low", "win_rate_high": "high"},
}
HEADLINES = {
    "pass@1": "held-out pass@1",
    "preference_accuracy": "held-out preference accuracy",
    "label_accuracy": "held-out label accuracy",
}
NUM_GROUPS = 3
NUM_ANSWERS = 4
MAX_CHARACTERS = 1500
OF_OWN_ANSWERS = ("Reward", "Staleness, versions")
"""Where all answers are a data set's they show how the data was made, and nothing that is learned."""


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
        "warnings": warnings(rows, evaluations, _loss_name(recipe)),
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


def _loss_name(recipe: Path) -> str:
    """Of the loss that the recipe names; empty where none does."""
    try:
        loss = yaml.safe_load(recipe.read_text())["loss"]
        return str(loss["name"] if isinstance(loss, dict) else loss)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def _has_own_answers(rows: Sequence[dict[str, Any]]) -> bool:
    return "response_length_mean" in rows[-1]


def _is_count(name: str) -> bool:
    return name in ("issued", "trained", "queued", "in_flight", "unscorable") or name.startswith("dropped/")


def _figures(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    figures = [
        (label, f"{evaluations[0][name]:.2f} → {evaluations[-1][name]:.2f}")
        for name, label in HEADLINES.items()
        if len(evaluations) > 1 and None not in (evaluations[0].get(name), evaluations[-1].get(name))
    ]
    if evaluations and evaluations[-1].get("win_rate") is not None:
        figures.append(("win rate against the start", f"{evaluations[-1]['win_rate']:.2f}"))
    rewards = [row["reward_mean"] for row in rows if row.get("reward_mean") is not None]
    if len(set(rewards)) > 1 and _has_own_answers(rows):
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
    terms = {name: name.removeprefix("reward/") for name in rows[-1] if name.startswith("reward/")}
    wanted = [(HELD_OUT, evaluations), ({**CHARTS, "Reward terms": terms}, rows)]
    for title, names, source in [(title, names, source) for each, source in wanted for title, names in each.items()]:
        series = [{"label": label, "points": _points(source, name)} for name, label in names.items()]
        series = [each for each in series if len(each["points"]) > 1]
        says_something = any(value for each in series for _, value in each["points"])
        if says_something and (title not in OF_OWN_ANSWERS or _has_own_answers(rows)):
            charts.append({"title": title, "series": series})
    return charts


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _evaluations(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first, the last, and a few between."""
    if not evaluations:
        return {"head": [], "rows": []}
    # What belongs to a bucket would push the rest out of sight.
    names = sorted(evaluations[-1], key=lambda name: name.startswith("length_bucket"))
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
    note = f"{reward}{f' ({terms})' if terms else ''} · {completion.num_sampled} tokens"
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
