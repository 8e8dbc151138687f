"""DPO and SimPO where the chosen responses are longer: which gives shorter responses at equal accuracy?

    .venv/bin/python benchmarks/length.py [--seeds 0 1 2] [--longer 0.75] [--words 1] [--beta 10] [--gamma 1]
                                          [--out DIR]

A tiny Llama adds two-digit numbers column by column, with errors, and pads its reasoning with filler words. There are
`--words` different filler words (with 1 they are easy to predict, as common phrases are), and after each word another
follows with probability 0.95. The model's own responses become pairs, a right one against a wrong one. In a share
`--longer` of the pairs the right response is the longer one. Accuracy and length are measured every ten steps on four
samples for each of 96 held-out prompts. The warm-up and the samples in DIR are reused, so use one DIR per choice of
words and share. beta and gamma are SimPO's.

Printed before training: how strongly the pairs initially push the model to continue with filler, as a multiple of the
gradient on a content token. A response with `a` filler words continues a times and ends once. The gradient of its
log-prob with respect to the logit of continuing, whose probability is p, is therefore (1 - p) a - p. DPO (arXiv
2305.18290, equation 7) takes this for the chosen minus the rejected response, so the ends cancel, and all pairs have
the same weight at first. SimPO (arXiv 2405.14734, equation 6) divides each by the number of tokens of its response and
weights a pair by sigmoid(gamma - beta d), where d is the difference of its mean log-probs.
"""

import argparse
import itertools
import json
import math
import random
import re
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from preference import train, write
from solutions import logprobs

from volley.cluster.cli.demo import make_model, make_tokenizer, worked_answer, write_problems

LETTERS = "abcdefgh"
GOES_ON = 0.95
SPOILT_SHARE = 0.4
MAX_TOKENS = 120
RATE = 3e-5
LEARNER = {"dtype": "fp32", "zero_stage": 1, "warmup_steps": 5, "max_tokens_per_micro_batch": 8192}

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rambling(rng: random.Random, words: str) -> str:
    said = ""
    while rng.random() < GOES_ON and len(said) < MAX_TOKENS // 2:
        said += rng.choice(words)
    return said


def warm_up(out: Path, words: str) -> Path:
    """The model that will be asked: SFT on worked additions, four in ten spoilt, each with some rambling."""
    write_problems(out, seed=0)
    model = out / "runs" / "sft" / "model"
    if not model.exists():
        rng = random.Random(0)
        make_model(out / "start", 0, make_tokenizer("0123456789+=? " + LETTERS))
        shown = []
        for problem in read(out / "train.jsonl"):
            a, b = map(int, problem["prompt"][:-2].split("+"))
            text = worked_answer(a, b, rng if rng.random() < SPOILT_SHARE else None)
            shown.append(
                {"prompt": problem["prompt"], "completion": text.replace("</think>", rambling(rng, words) + "</think>")}
            )
        write(out / "shown.jsonl", shown)
        recipe = {"model": str(out / "start"), "steps": 350, "groups_per_step": 128, "loss": "sft"}
        recipe |= {"data": {"train": "shown.jsonl"}}
        recipe["learner"] = {**LEARNER, "lr": 2e-3, "betas": [0.9, 0.95], "schedule": "linear", "min_lr_share": 0.1}
        train(out, "sft", recipe)
    return model


def make_pairs(out: Path, model: Path, seed: int, longer_share: float) -> list[Row]:
    """One pair of each group of eight samples that has one."""
    recipe = {"model": str(model), "seed": seed, "steps": 10, "publish_every": 10, "groups_per_step": 128}
    recipe |= {"loss": "grpo", "rewards": ["math"], "data": {"train": "train.jsonl"}, "save_rollouts": True}
    recipe |= {"rollout": {"group_size": 8, "max_tokens": MAX_TOKENS, "max_replacements": 0}}
    samples = out / "runs" / f"samples-{seed}" / "rollouts"
    if not samples.exists():
        train(out, f"samples-{seed}", {**recipe, "learner": {**LEARNER, "lr": 1e-12}})
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in pq.read_table(samples).to_pylist():
        if row["finish_reason"] == "stop" and row["completion"]:
            groups[row["step"], row["ordinal"]].append(row)
    rng, pairs = random.Random(seed), []
    for group in groups.values():
        is_longer = rng.random() < longer_share
        fitting = [
            {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
            for a in group
            for b in group
            if a["accuracy"] == 1.0
            and b["accuracy"] == 0.0
            and (len(a["token_ids"]) > len(b["token_ids"])) == is_longer
        ]
        if fitting:
            pairs.append(rng.choice(fitting))
    return pairs


def pushes_to_go_on(pairs: list[Row], model: Path, beta: float, gamma: float) -> tuple[float, float]:
    """DPO's and SimPO's (see above), in the mean over pairs."""
    dpo, simpo, content = [], [], []
    for pair, sides in zip(pairs, logprobs(model, pairs), strict=True):
        bare = [re.sub("</?(think|answer)>", "#", pair[side]) for side in ("chosen", "rejected")]
        chosen, rejected = ((1 - GOES_ON) * sum(map(text.count, LETTERS)) - GOES_ON for text in bare)
        (chosen_sum, chosen_tokens), (rejected_sum, rejected_tokens) = sides
        difference = chosen_sum / chosen_tokens - rejected_sum / rejected_tokens
        weight = 1 / (1 + math.exp(beta * difference - gamma))
        dpo.append(chosen - rejected)
        simpo.append(weight * (chosen / chosen_tokens - rejected / rejected_tokens))
        content.append(weight * (1 / chosen_tokens + 1 / rejected_tokens) / 2)
    return statistics.fmean(dpo), statistics.fmean(simpo) / statistics.fmean(content)


def tokens_at(accuracy: float, curve: list[tuple[float, float]]) -> float:
    """Where a curve of (accuracy, tokens) first reaches an accuracy, on straight lines between its points."""
    for (before, some), (after, more) in itertools.pairwise(curve):
        if before < accuracy <= after:
            return some + (more - some) * (accuracy - before) / (after - before)
    return curve[0][1]


def compare(out: Path, options: argparse.Namespace) -> None:
    model = warm_up(out, LETTERS[: options.words])
    losses = ({"name": "dpo"}, {"name": "simpo", "beta": options.beta, "gamma": options.gamma})
    for seed in options.seeds:
        pairs = make_pairs(out, model, seed, options.longer)
        write(out / "pairs.jsonl", pairs)
        chosen, rejected = (statistics.fmean(len(pair[side]) for pair in pairs) for side in ("chosen", "rejected"))
        print(f"seed {seed}: {len(pairs)} pairs, {chosen - rejected:+.1f} characters from rejected to chosen")
        dpo, simpo = pushes_to_go_on(pairs, model, options.beta, options.gamma)
        print(f"push to go on, as a multiple of a content token's: DPO {dpo:.2f}, SimPO {simpo:.2f}")
        curves = {}
        for loss in losses:
            name = str(loss["name"])
            recipe = {"model": str(model), "seed": seed, "steps": options.steps, "groups_per_step": 32, "loss": loss}
            recipe |= {"eval_every": 10, "rewards": ["math"], "rollout": {"max_tokens": MAX_TOKENS}}
            recipe |= {
                "eval": {"max_prompts": 96, "samples": 4},
                "data": {"train": "pairs.jsonl", "test": "test.jsonl"},
            }
            _, found = train(
                out, "-".join(map(str, [*loss.values(), seed])), {**recipe, "learner": {**LEARNER, "lr": RATE}}
            )
            curves[name] = [(each["pass@1_of_4"], each["response_length_mean_of_4"]) for each in found]
            told = ", ".join(f"{accuracy:.3f} / {tokens:.1f}" for accuracy, tokens in curves[name])
            print(f"{name:6} pass@1 / tokens, every 10 steps: {told}", flush=True)
        reached = min(max(accuracy for accuracy, _ in curve) for curve in curves.values())
        told = ", ".join(f"{name} {tokens_at(reached, curve):.1f}" for name, curve in curves.items())
        print(f"tokens where pass@1 is first {reached:.3f}: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--longer", type=float, default=0.75, help="share of pairs whose chosen side is the longer")
    parser.add_argument("--words", type=int, default=1, choices=range(1, len(LETTERS) + 1), help="how many different")
    parser.add_argument("--beta", type=float, default=10.0)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="a directory to keep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        compare(out, options)


if __name__ == "__main__":
    main()
