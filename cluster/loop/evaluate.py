"""Evaluation: how good the policy is, greedy and over samples, and how long its responses are.

- pass@1: share of prompts whose greedy response the verifier accepts.
- pass@k: probability that at least one of k samples is right; unbiased estimate from n samples of which c are right:
  1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1).
- maj@n: share of prompts whose most frequent answer among n samples is right (self-consistency, arXiv 2203.11171);
  ties go to the answer that came first.
- accuracy by length bucket: greedy responses are sorted by length into buckets of equal size, which shows whether
  shorter responses lose accuracy.

All shares are NaN if no reward of the run is a verifier.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

from volley.cluster.loop.group_metrics import no_answer_share
from volley.cluster.loop.interfaces import Evaluation
from volley.cluster.loop.rollout import Rollout
from volley.cluster.recipe.config import EvalConfig
from volley.rollout.types import Prompt, Sampling, ScoredGroup


async def evaluate(
    rollout: Rollout, prompts: Sequence[Prompt], config: EvalConfig, max_tokens: int, stop: tuple[str, ...]
) -> Evaluation:
    """Answer every prompt greedily, and `config.samples` times at `config.temperature` if asked for."""
    limit = config.max_tokens or max_tokens
    greedy = Sampling(1, 0.0, 1.0, limit, stop)
    answered = await asyncio.gather(*(rollout(prompt, greedy, "evaluate") for prompt in prompts))
    metrics = greedy_metrics(answered, config.length_buckets)
    if config.samples:
        sampling = Sampling(config.samples, config.temperature, 1.0, limit, stop)
        metrics |= sample_metrics(await asyncio.gather(*(rollout(prompt, sampling, "pass@k") for prompt in prompts)))
    return Evaluation(metrics, tuple(answered))


def greedy_metrics(groups: Sequence[ScoredGroup], num_buckets: int) -> dict[str, float]:
    """pass@1, reward of scorable responses, length, truncation, and accuracy by length bucket (`accuracy/short_1`, ...
    from short to long)."""
    lengths = [group.completions[0].num_sampled for group in groups]
    accuracies = [group.scores[0].accuracy for group in groups]
    metrics = {
        "pass@1": _mean(accuracies),
        "reward_mean": _mean_of_known([group.scores[0].reward for group in groups]),
        "prompts": float(len(groups)),
        "response_length_mean": _mean([float(length) for length in lengths]),
        "truncated_share": _mean([float(group.completions[0].truncated) for group in groups]),
        "unscorable": float(sum(bool(group.scores[0].unscorable) for group in groups)),
        "no_answer_share": no_answer_share([group.scores[0] for group in groups]),
    }
    order = sorted(range(len(groups)), key=lambda i: lengths[i])
    for bucket in range(min(num_buckets, len(groups))):
        inside = order[bucket * len(order) // num_buckets : (bucket + 1) * len(order) // num_buckets]
        if inside:
            metrics[f"length_bucket_{bucket + 1}/tokens_max"] = float(max(lengths[i] for i in inside))
            metrics[f"length_bucket_{bucket + 1}/accuracy"] = _mean([accuracies[i] for i in inside])
    return metrics


def sample_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """pass@k for k = 1, 2, 4, ... up to the number of samples n (as `pass@k_of_n`), maj@n, and their mean length."""
    n = len(groups[0].completions)
    metrics: dict[str, float] = {}
    counts = [sum(score.accuracy == 1.0 for score in group.scores) for group in groups]
    ks = [2**i for i in range(n.bit_length()) if 2**i <= n]
    for k in ks if ks[-1] == n else [*ks, n]:
        metrics[f"pass@{k}_of_{n}"] = _mean([pass_at_k(n, c, k) for c in counts])
    metrics[f"maj@{n}"] = _mean([_majority_accuracy(group) for group in groups])
    lengths = [float(completion.num_sampled) for group in groups for completion in group.completions]
    metrics[f"response_length_mean_of_{n}"] = _mean(lengths)
    return metrics


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from c right ones among n samples."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _majority_accuracy(group: ScoredGroup) -> float:
    votes = Counter(score.extracted for score in group.scores if score.extracted)
    if not votes:
        return 0.0
    winner = votes.most_common(1)[0][0]
    return next(score.accuracy for score in group.scores if score.extracted == winner)


def _mean(values: Sequence[float]) -> float:
    """The mean, where unscorable responses (NaN) count as 0; NaN if there is no known value."""
    known = [0.0 if math.isnan(value) else value for value in values]
    return sum(known) / len(known) if known and not all(map(math.isnan, values)) else math.nan


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
