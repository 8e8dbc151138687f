"""Compare the log-probs of DeepSpeed and vLLM after many pushes of clearly different weights.

    .venv/bin/python benchmarks/parity.py [--dtype bf16|fp32] [--untied] [--pushes 10] [--zero-stage 1]

The benchmark runs both in one process with the demo's tiny Llama. It takes gradient steps with a large learning rate,
pushes the weights after each, and compares the log-probs of whole sequences at temperature 1. It prints one JSON
object: for each push the mean and maximum absolute difference in nats, and how far the policy moved from the initial
weights, which shows that the pushes had an effect.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volley.rollout.types import Logprobs

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from volley.cluster.cli.demo import make_model
    from volley.learner.config import LearnerConfig
    from volley.learner.losses import LOSSES
    from volley.learner.ranks.group import LearnerGroup
    from volley.learner.ranks.rank import LearnerRank
    from volley.learner.ranks.spec import RankSpec
    from volley.learner.signals.advantages import Advantages
    from volley.learner.signals.batch import Batch
    from volley.learner.signals.rows import Rows
    from volley.rollout.config import RolloutConfig
    from volley.rollout.engines.vllm import EngineSpec, VllmEngine
    from volley.rollout.types import Completion, as_token_ids

    make_model(directory, seed=0, tie_word_embeddings=not options.untied)
    config = LearnerConfig(dtype=options.dtype, zero_stage=options.zero_stage, lr=3e-3)
    loss = LOSSES["grpo"]()
    rank = LearnerRank(RankSpec(config, loss, directory, options.pushes, 1.0, 0))

    async def call(method: str, *arguments: Any) -> Any:
        return getattr(rank, method)(*arguments)

    learner = LearnerGroup([call], loss, config.max_tokens_per_micro_batch)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    engine = VllmEngine(EngineSpec(str(directory), tokenizer, RolloutConfig(enforce_eager=True), options.dtype, 128))
    rng = random.Random(0)
    sequences = [as_token_ids([rng.randrange(1, 20) for _ in range(40)]) for _ in range(16)]
    start = await learner.logprobs(sequences)
    pushes = []
    for push in range(1, options.pushes + 1):
        said = [(ids[:8], Completion.single(ids[8:], (-3.0,) * 32, "", "stop", 0, 0)) for ids in sequences]
        advantages = np.array([rng.gauss(0, 1) for _ in said])
        await learner.update(Batch(Rows.from_completions(said, 0), Advantages(advantages)))
        await engine.load_weights(rank.named_weights(), push)
        ours, theirs = await learner.logprobs(sequences), await engine.logprobs(sequences)
        pushes.append({"push": push, **compare(ours, theirs), "moved": compare(ours, start)["mean"]})
    await engine.close()
    worst = max(entry["mean"] for entry in pushes)
    return {"dtype": options.dtype, "tied": not options.untied, "worst_mean": worst, "pushes": pushes}


def compare(ours: Sequence[Logprobs], theirs: Sequence[Logprobs]) -> dict[str, float]:
    gaps = np.abs(np.concatenate(ours).astype(np.float64) - np.concatenate(theirs))
    return {"mean": float(gaps.mean()), "max": float(gaps.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--pushes", type=int, default=10)
    parser.add_argument("--zero-stage", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(asyncio.run(measure(options, Path(directory)))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
