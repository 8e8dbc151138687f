"""GRPO in one visible loop, from Volley's public parts. Copy this file and change it.

    make demo                          # makes the model and the data that are the defaults here
    python examples/grpo_loop.py       # a few minutes on two CPU cores

Learner and engine share one process and take turns: sample, score, update, load the new weights into the engine. What
`volley train` adds is left out: asynchronous rollouts, checkpoints and resume, evaluation during training, child
processes that limit what a reward may do, and Ray.

Legend: B prompts per step, G completions per prompt.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import fmean

# torch and vLLM read these when they are imported: threads sleep when idle, and the KV cache on the CPU is small.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from transformers import AutoTokenizer

from volley.learner.config import LearnerConfig
from volley.learner.losses import LOSSES
from volley.learner.ranks.rank import LearnerRank
from volley.learner.ranks.shards import make_shards
from volley.learner.ranks.spec import RankSpec
from volley.learner.signals.batch import make_batch
from volley.rewards.math import verify
from volley.rollout.config import DataConfig, RolloutConfig
from volley.rollout.data.prompts import PromptSet
from volley.rollout.data.rows import read_rows
from volley.rollout.engines.vllm import EngineSpec, VllmEngine
from volley.rollout.types import Completion, Prompt, Sampling, Score, ScoredGroup

MAX_MODEL_LEN = 256
"""Tokens of a prompt and its completion."""
MAX_TOKENS_PER_MICRO_BATCH = 8192


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo-warm-up/model"), help="a model directory")
    parser.add_argument("--data", default="runs/demo/data/train.jsonl", help="rows with prompt and answer")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--groups", type=int, default=32, help="prompts per step (B)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt (G)")
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--loss", choices=["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"], default="grpo")
    parser.add_argument("--out", type=Path, default=Path("runs/grpo-loop"), help="where to write the trained model")
    return parser.parse_args()


def score(prompt: Prompt, completion: Completion) -> Score:
    """1 for a right answer. Change this: any function of prompt and text will do."""
    reward = float(verify(completion.text, prompt.answer))
    return Score(reward, {"math": reward}, accuracy=reward)


async def sample(engine: VllmEngine, prompt: Prompt, sampling: Sampling) -> ScoredGroup:
    """G completions of a prompt, scored. Completion i is drawn with the seed of the prompt's place plus i."""
    futures = engine.submit(prompt.token_ids, sampling, prompt.ordinal * sampling.num_samples)
    completions = await asyncio.gather(*futures)
    return ScoredGroup(prompt, tuple(completions), tuple(score(prompt, each) for each in completions))


async def train(options: argparse.Namespace) -> AsyncIterator[dict[str, float]]:
    """Yields the metrics of each step."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts = PromptSet(read_rows(options.data, {}, ("prompt", "answer")), tokenizer, DataConfig(options.data), seed=0)
    sampling = Sampling(options.group_size, temperature=1.0, max_tokens=options.max_tokens)
    settings = {"max_tokens": options.max_tokens} if options.loss == "dr_grpo" else {}
    loss = LOSSES[options.loss](**settings)
    config = LearnerConfig(dtype="fp32", zero_stage=1, lr=options.lr, warmup_steps=5)
    # The learner first: vLLM joins its process group.
    learner = LearnerRank(RankSpec(config, loss, options.model, options.steps, sampling.temperature, seed=0))
    spec = EngineSpec(str(options.model), tokenizer, RolloutConfig(enforce_eager=True), "fp32", MAX_MODEL_LEN)
    engine = VllmEngine(spec)
    for step in range(options.steps):
        ordinals = range(step * options.groups, (step + 1) * options.groups)
        groups = await asyncio.gather(*(sample(engine, prompts.prompt_at(i), sampling) for i in ordinals))
        batch = make_batch(groups, loss, version=engine.version)
        (shard,) = make_shards(batch, MAX_TOKENS_PER_MICRO_BATCH, num_ranks=1, skips_idle=not loss.needs_reference)
        update = learner.update(shard)
        await engine.load_weights(learner.named_weights(), version=learner.step)
        yield {"step": learner.step, "reward": fmean(r for group in groups for r in group.rewards), **update.metrics}
    learner.export(options.out, tokenizer)
    learner.close()  # before the engine, which closes the process group
    await engine.close()


async def main() -> None:
    async for metrics in train(arguments()):
        shown = ("step", "reward", "loss", "grad_norm", "entropy", "logprob_mismatch_mean")
        print("  ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
