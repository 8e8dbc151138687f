"""The charts of the report: which metrics they show, and their points."""

from collections.abc import Sequence
from typing import Any

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
    "Log-prob per token, nats": {"chosen_logprob": "chosen", "rejected_logprob": "rejected"},
    "Share of groups with a pair": {"pair_yield": "share"},
    "Groups without a pair": {
        "pairs_dropped/tied": "tied",
        "pairs_dropped/unscorable": "unscorable",
        "pairs_dropped/same": "same text",
    },
    "Response length in pairs, tokens": {"chosen_length_mean": "chosen", "rejected_length_mean": "rejected"},
    "Desirable share": {"desirable_share": "share"},
    "Accuracy in training": {"accuracy": "accuracy", "no_answer_share": "no answer found"},
    "Loss": {"loss": "loss"},
    "Response length, tokens": {"response_length_mean": "tokens"},
    "Response length, ratio to step 1": {"response_length_ratio": "ratio"},
    "Truncated share": {"truncated_share": "share"},
    "Entropy, nats": {"entropy": "entropy"},
    "KL, nats": {"kl": "KL", "kl_baseline": "baseline"},
    "Reference model age, steps": {"reference_age": "age"},
    "Clipped share of tokens": {"clip_share": "share"},
    "Gradient norm": {"grad_norm": "norm"},
    "Explained variance of returns": {"explained_variance": "share"},
    "Learning rate": {"lr": "rate"},
    "Log-prob mismatch between engine and learner, nats": {"logprob_mismatch_mean": "mean"},
    "Log-prob parity after weight update, nats": {"parity_mean": "mean"},
    "Staleness, versions": {"staleness_max": "oldest"},
    "Share of groups without signal": {"zero_variance_share": "share"},
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
"""Title of a chart -> column of metrics.jsonl -> label."""
HELD_OUT = {
    "Held-out pass@1": {"pass@1": "pass@1"},
    "Held-out preference accuracy": {"preference_accuracy": "pairs", "label_accuracy": "labels"},
    "Held-out loss": {"loss": "loss"},
    "Win rate against initial policy": {"win_rate": "mean", "win_rate_low": "low", "win_rate_high": "high"},
}
"""The same for evaluations.jsonl."""
SAMPLED_ONLY = ("Reward", "Staleness, versions")
"""Charts that are meaningless if all responses come from a data set."""


def make_charts(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Titles and series of the charts, without those that have fewer than two points or only zeros."""
    charts = []
    terms = {name: name.removeprefix("reward/") for name in rows[-1] if name.startswith("reward/")}
    wanted = [(HELD_OUT, evaluations), ({**CHARTS, "Reward terms": terms}, rows)]
    for title, names, source in [(title, names, source) for each, source in wanted for title, names in each.items()]:
        series = [{"label": label, "points": _points(source, name)} for name, label in names.items()]
        series = [each for each in series if len(each["points"]) > 1]
        is_informative = any(value for each in series for _, value in each["points"])
        if is_informative and (title not in SAMPLED_ONLY or has_sampled_responses(rows)):
            charts.append({"title": title, "series": series})
    return charts


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def has_sampled_responses(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the policy sampled responses in this run."""
    return "response_length_mean" in rows[-1]
