"""The metrics of a step's groups: rewards, accuracy, length, staleness."""

import math
from collections.abc import Sequence

from volley.rollout.types import Score, ScoredGroup


def group_metrics(groups: Sequence[ScoredGroup], version: int) -> dict[str, float]:
    """Metrics of the groups that a step trains on. version: the weights that are about to learn from them.

    Rewards are averaged over scorable completions; a term or accuracy that is unknown everywhere is left out.

    If the policy sampled any completions, the metrics cover only those, not a data set's completions in the same groups
    (SPIN). If all completions come from a data set, samples, tokens and rewards (1 and 0) are the data's. Metrics that
    describe a policy are left out then: length, truncated share, share of groups without signal.
    """
    everything = [each for group in groups for each in zip(group.completions, group.scores, strict=True)]
    sampled = [each for each in everything if each[0].is_sampled]
    completions = [completion for completion, _ in sampled or everything]
    scores = [score for _, score in sampled or everything]
    metrics = {
        "samples": len(completions),
        "completion_tokens": sum(completion.num_sampled for completion in completions),
        "reward_mean": _mean([score.reward for score in scores]),
        "accuracy": _mean([score.accuracy for score in scores]),
        "no_answer_share": no_answer_share(scores),
        "staleness_max": version - min(group.first_version for group in groups),
        "unscorable": sum(bool(score.unscorable) for score in scores),
    }
    if sampled:
        metrics["response_length_mean"] = _mean([float(completion.num_sampled) for completion in completions])
        metrics["truncated_share"] = _mean([float(completion.truncated) for completion in completions])
        metrics["zero_variance_share"] = _mean([float(not group.has_signal) for group in groups])
    for name in sorted({name for score in scores for name in score.terms}):
        metrics[f"reward/{name}"] = _mean([score.terms[name] for score in scores if name in score.terms])
    return metrics


def no_answer_share(scores: Sequence[Score]) -> float:
    """The share of judged responses in which the verifier found no answer; NaN if it does not report what it found."""
    judged = [score for score in scores if not math.isnan(score.accuracy) and score.extracted is not None]
    return _mean([float(score.is_answerless) for score in judged])


def _mean(values: Sequence[float]) -> float:
    """The mean of the known values; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
