"""Do all methods learn, and does staleness cost anything? Held-out accuracy on the demo's additions, equal samples.

    .venv/bin/python benchmarks/learning.py methods [--steps 80] [--seeds 3]
    .venv/bin/python benchmarks/learning.py staleness [--steps 80] [--seeds 3]
    .venv/bin/python benchmarks/learning.py speed [--steps 16] [--seeds 1]

Everything starts from the demo's warmed-up model (made by `make demo`) and takes 256 samples a step; SPIN shows the
policy one worked addition beside each of its 256 own answers. methods: the policy-gradient and the online preference
family, each at a learning rate found on another seed. staleness: GRPO on a private Ray cluster with one rollout worker
and one learner rank of one core each, synchronous and with one and two versions of staleness, the last one also with
truncated importance sampling instead of clipping against the rollout; and how much faster a median step is than the
synchronous one, as a share of the bound (g + t) / max(g, t) of that run's seconds of generating and learning. speed:
the same figure for a model of 18 M parameters that hardly moves, so that all three have the same work, and the two
cores have more to do than what comes with it (the driver, vLLM's front end). Prints a row per run, then a table of
means.
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
    """The recipe with a larger model, random for ever, and a reward that every group is divided by."""
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
    print(f"\nheld-out pass@1, mean and range of {seeds} seeds: start, half-way, after {steps} steps")
    for name, runs in results.items():
        cells = []
        for values in zip(*runs, strict=True):
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
        print(f"{name:20} " + "   ".join(cells))


def print_speed(speed: dict[str, list[Diagnosis]]) -> None:
    """Against the synchronous run of the same seed."""
    print("\nspeed-up of a median step over the synchronous one, the bound of that one's times, share of it reached")
    for name, runs in speed.items():
        cells = []
        for in_turn, run in zip(speed["max_staleness 0"], runs, strict=True):
            faster = in_turn.step / run.step
            cells.append(f"{faster:.2f} of {in_turn.bound:.2f} ({faster / in_turn.bound:.0%})")
        print(f"{name:20} " + "   ".join(cells))


if __name__ == "__main__":
    main()
