"""Compare the held-out accuracy of all methods, and the effect of staleness, on the demo's additions.

    .venv/bin/python benchmarks/learning.py methods [--steps 80] [--seeds 3]
    .venv/bin/python benchmarks/learning.py staleness [--steps 80] [--seeds 3]
    .venv/bin/python benchmarks/learning.py speed [--steps 16] [--seeds 1]

All runs start from the demo's warmed-up model (created by `make demo`) and use 256 samples per step. SPIN also uses one
worked addition for each of its 256 samples. Prints one row per run, then a table of means.

- methods: policy-gradient and online preference methods, each with a learning rate that was tuned on another seed.
- staleness: GRPO on a private Ray cluster with one rollout worker and one learner rank on one core each: synchronous,
  and with a maximum staleness of one and two versions. The last one also runs with truncated importance sampling
  instead of clipping against the rollout policy. Also prints the speed-up of a median step over the synchronous run,
  and its share of the bound (g + t) / max(g, t), where g and t are the seconds of generation and training.
- speed: the same speed-up for a model of 18 M parameters that hardly changes, so that all three runs do the same work
  and the cores do more than run the driver and vLLM's front end.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from preference import PROBLEMS, WARM, train, write

from volley.cluster.cli.demo import make_model, worked_answer
from volley.cluster.run.diagnose import Diagnosis, diagnose

LEARNER = {"dtype": "bf16", "zero_stage": 1, "warmup_steps": 5, "schedule": "linear", "min_lr_share": 0.2}
ROUND = 10
METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {"loss": {"name": "grpo", "clip_high": 0.28}, "lr": 1.5e-4},
    "Dr. GRPO": {"loss": "dr_grpo", "lr": 1.5e-4},
    "GSPO": {"loss": "gspo", "lr": 1.5e-4},
    "CISPO": {"loss": "cispo", "lr": 1.5e-4},
    "RLOO": {"loss": "rloo", "lr": 1.5e-4},
    "REINFORCE++": {"loss": "reinforce_pp", "lr": 1.5e-4},
    "PPO": {
        "loss": {"name": "ppo", "clip_high": 0.28, "lam": 1.0, "value_weight": 0.5, "value_lr": 1e-3},
        "lr": 1.5e-4,
    },
    "online DPO": {"loss": {"name": "dpo", "beta": 0.5}, "lr": 1.5e-4, "signal": {"pairs": "all", "margin": 0.5}},
    "online KTO": {"loss": "kto", "lr": 3e-5},
    "iterative DPO": {
        "loss": {"name": "dpo", "beta": 0.5},
        "lr": 5e-5,
        "signal": {"pairs": "all", "margin": 0.5},
        "max_staleness": 0,
        "publish_every": ROUND,
        "reference": {"refresh_every": ROUND},
    },
    "SPIN": {
        "loss": "dpo",
        "lr": 3e-5,
        "max_staleness": 0,
        "publish_every": 20,
        "reference": {"refresh_every": 20},
        "groups_per_step": 256,
        "rollout": {"group_size": 1, "max_tokens": 40},
        "rewards": ["math"],
        "completions": "both",
    },
}
STALENESS: dict[str, dict[str, Any]] = {
    f"max_staleness {n}": {
        "loss": {"name": "grpo", "clip_high": 0.28},
        "lr": 1.5e-4,
        "max_staleness": n,
        "launcher": "ray",
    }
    for n in (0, 1, 2)
}
SPEED = {name: {**changes, "lr": 1e-9} for name, changes in STALENESS.items()}
LARGER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
STALENESS["max_staleness 2, tis"] = {**STALENESS["max_staleness 2"], "loss": {"name": "grpo", "guard": "tis"}}


def recipe(directory: Path, steps: int, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    shown = directory / "shown.jsonl"
    if not shown.exists():
        problems = [json.loads(line) for line in (PROBLEMS / "train.jsonl").read_text().splitlines()]
        sums = [tuple(map(int, problem["prompt"][:-2].split("+"))) for problem in problems]
        write(shown, [{**p, "completion": worked_answer(a, b)} for p, (a, b) in zip(problems, sums, strict=True)])
    changes = dict(changes)
    learner = {**LEARNER, "lr": changes.pop("lr"), "max_tokens_per_micro_batch": 8192}
    data = {
        "train": str(shown),
        "test": str(PROBLEMS / "test.jsonl"),
        "completions": changes.pop("completions", "auto"),
    }
    return {
        "model": str(WARM),
        "steps": steps,
        "seed": seed,
        "groups_per_step": 32,
        "max_staleness": 1,
        "eval_every": steps // 2,
        "data": data,
        "rollout": {"group_size": 8, "max_tokens": 40, "max_replacements": 0},
        "rewards": ["math", {"name": "think_format", "weight": 0.1}],
        "learner": learner,
        "cluster": {"worker_cpus": 1, "rank_cpus": 1},
        **changes,
    }


def same_work(directory: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with a larger model that stays random, and a reward that differs within almost every group."""
    make_model(directory / "larger", 0, **LARGER)
    (directory / "mine.py").write_text(
        "def even(response, **row):\n    return float(sum(map(ord, response)) % 2 == 0)\n"
    )
    changes = {"model": "larger", "rewards": ["mine.py:even"], "data": {"train": recipe["data"]["train"]}}
    return {**recipe, **changes, "eval_every": 0, "rollout": {**recipe["rollout"], "max_tokens": 24}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("methods", "staleness", "speed"))
    parser.add_argument("--steps", type=int, default=0, help="default: 16 for speed, 80 for the others")
    parser.add_argument("--seeds", type=int, default=0, help="default: 1 for speed, 3 for the others")
    parser.add_argument("--only", nargs="+", help="names of methods")
    options = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    variants = {"methods": METHODS, "staleness": STALENESS, "speed": SPEED}[options.what]
    is_speed = options.what == "speed"
    steps, seeds = options.steps or (16 if is_speed else 80), options.seeds or (1 if is_speed else 3)
    chosen = {name: each for name, each in variants.items() if not options.only or name in options.only}
    results: dict[str, list[list[float]]] = {name: [] for name in chosen}
    speed: dict[str, list[Diagnosis]] = {name: [] for name in chosen}
    for seed, (name, changes) in itertools.product(range(seeds), chosen.items()):
        with tempfile.TemporaryDirectory() as out:
            content = recipe(Path(out), steps, seed, changes)
            rows, found = train(Path(out), "run", same_work(Path(out), content) if is_speed else content)
        accuracies = [evaluation["pass@1"] for evaluation in found]
        results[name].append(accuracies)
        if (diagnosis := diagnose(rows)) is not None:
            speed[name].append(diagnosis)
        samples = sum(row["samples"] for row in rows)
        shown = " -> ".join(f"{value:.3f}" for value in accuracies)
        print(f"seed {seed}  {name:20} {shown}   {samples:,.0f} samples, {rows[-1]['wall_s']:.0f} s", flush=True)
    if not is_speed:
        print_accuracies(results, seeds, steps)
    if "max_staleness 0" in speed:
        print_speed(speed)


def print_accuracies(results: dict[str, list[list[float]]], seeds: int, steps: int) -> None:
    print(f"\nheld-out pass@1, mean and range over {seeds} seeds: start, half-way, after {steps} steps")
    for name, runs in results.items():
        cells = []
        for values in zip(*runs, strict=True):
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
        print(f"{name:20} " + "   ".join(cells))


def print_speed(speed: dict[str, list[Diagnosis]]) -> None:
    """Speed-up over the synchronous run of the same seed."""
    print("\nspeed-up of a median step over the synchronous run, its bound, share of the bound")
    for name, runs in speed.items():
        cells = []
        for synchronous, run in zip(speed["max_staleness 0"], runs, strict=True):
            speed_up = synchronous.step / run.step
            cells.append(f"{speed_up:.2f} of {synchronous.bound:.2f} ({speed_up / synchronous.bound:.0%})")
        print(f"{name:20} " + "   ".join(cells))


if __name__ == "__main__":
    main()
