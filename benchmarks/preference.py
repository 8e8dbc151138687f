"""The preference family where it can be seen: on real pairs, on little data, in memory.

    .venv/bin/python benchmarks/preference.py gsm8k [--steps 100]    every offline method on real solutions
    .venv/bin/python benchmarks/preference.py small [--epochs 20]    DPO and IPO on 200 pairs, over and over
    .venv/bin/python benchmarks/preference.py memory                 what a reference model costs

gsm8k: solutions of a question, correct against incorrect, from VOLLEY_TEST_DATA/gsm8k/model_solutions.jsonl (as
labels for KTO); one question in three is held out, each in turn. A small Llama, first taught the train side's correct
solutions by SFT. Accuracy on held-out pairs by what the loss compares: the log-ratio to the start for DPO, IPO and KTO,
where all pairs are ties at first and count half, and the mean log-prob for SimPO and ORPO. small: the demo's model and
additions (after `make demo`).
"""

import argparse
import asyncio
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from solutions import pair_accuracy, write_solutions

from volley.cluster.cli.demo import make_model, worked_answer
from volley.cluster.storage.metrics import read_rows

ROOT = Path(__file__).resolve().parent.parent
WARM = ROOT / "runs" / "demo-warm-up" / "model"
PROBLEMS = ROOT / "runs" / "demo" / "data"
RATES = {"dpo": 3e-4, "ipo": 3e-5, "kto": 1e-4, "simpo": 5e-5, "orpo": 1e-3}
OPTIONS: dict[str, dict[str, float]] = {"orpo": {"odds_weight": 4.0}}
"""gsm8k: options besides the learning rate. With ORPO's default weight only the likelihood moved."""
SOLUTIONS_LEARNER = {"dtype": "fp32", "zero_stage": 1, "max_tokens_per_micro_batch": 8192, "warmup_steps": 5}


def train(directory: Path, name: str, recipe: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics and evaluations of a run in `directory`."""
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "save_rollouts": False, **recipe}))
    volley = Path(sys.executable).with_name("volley")
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [str(volley), "train", str(path)], cwd=directory, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    run = directory / "runs" / name
    return read_rows(run / "metrics.jsonl"), read_rows(run / "evaluations.jsonl")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k(options: argparse.Namespace, out: Path) -> None:
    """Each loss on each fold, and then over all folds, so that every pair is held out once."""
    names = options.only or list(RATES)
    outcomes: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    print(f"{'':7}{'lr':>8}{'fold':>5}{'held-out accuracy':>24}{'loss':>18}   (start -> after {options.steps} steps)")
    for fold in options.folds:
        directory = out / f"fold-{fold}"
        directory.mkdir(parents=True, exist_ok=True)
        source = Path(os.environ["VOLLEY_TEST_DATA"]) / "gsm8k" / "model_solutions.jsonl"
        sizes = write_solutions(source, directory, fold, options.max_characters)
        start = directory / "runs" / "sft" / "model"
        if not start.exists():
            sft = {"model": str(directory / "start"), "steps": options.warm_up, "loss": "sft", "groups_per_step": 16}
            sft |= {"data": {"train": "shown-train.jsonl"}, "learner": {**SOLUTIONS_LEARNER, "lr": 3e-3}}
            rows, _ = train(directory, "sft", sft)
            print(f"{sizes}, SFT: {rows[0]['loss']:.2f} -> {rows[-1]['loss']:.2f} nats a token", flush=True)
        pairs = [json.loads(line) for line in (directory / "pairs-test.jsonl").read_text().splitlines()]
        before = pair_accuracy(start, start, pairs)
        for name in names:
            kind, groups = ("labels", 16) if name == "kto" else ("pairs", 8)
            rate = options.lr or RATES[name]
            recipe = {"model": str(start), "groups_per_step": groups, "steps": options.steps}
            recipe |= {"eval_every": options.steps, "loss": {"name": name, **OPTIONS.get(name, {})}}
            recipe |= {"data": {"train": f"{kind}-train.jsonl", "test": f"{kind}-test.jsonl"}}
            recipe["learner"] = {**SOLUTIONS_LEARNER, "lr": rate}
            _, (first, *_, last) = train(directory, f"{name}-{rate:g}", recipe)
            reward = "per_token" if name in ("simpo", "orpo") else "log_ratio"
            after = pair_accuracy(directory / "runs" / f"{name}-{rate:g}" / "model", start, pairs)
            found = list(zip(before[reward], after[reward], strict=True))
            outcomes[name] += found
            accuracy = " -> ".join(f"{statistics.fmean(side):.3f}" for side in zip(*found, strict=True))
            print(f"{name:7}{rate:8g}{fold:5}{accuracy:>24}{first['loss']:10.3f} -> {last['loss']:.3f}", flush=True)
    for name, found in outcomes.items():
        accuracy = " -> ".join(f"{statistics.fmean(side):.3f}" for side in zip(*found, strict=True))
        rises = [after - before for before, after in found]
        error = statistics.stdev(rises) / math.sqrt(len(rises))
        print(f"{name:7} {len(found)} pairs {accuracy}, {statistics.fmean(rises):+.3f} (standard error {error:.3f})")


def small(epochs: int) -> None:
    rng = random.Random(0)
    problems = [json.loads(line) for line in (PROBLEMS / "train.jsonl").read_text().splitlines()][:200]
    pairs = []
    for problem in problems:
        a, b = map(int, problem["prompt"][:-2].split("+"))
        pairs.append({**problem, "chosen": worked_answer(a, b), "rejected": worked_answer(a, b, rng)})
    with tempfile.TemporaryDirectory() as out:
        directory = Path(out)
        write(directory / "pairs.jsonl", pairs)
        steps = epochs * len(pairs) // 20
        print(f"log-ratio difference D on 200 pairs; IPO's target is 1/(2 tau) = 5 for tau 0.1 ({epochs} epochs)")
        for name, beta in (("dpo", "beta"), ("ipo", "tau")):
            recipe = {"model": str(WARM), "steps": steps, "groups_per_step": 20, "data": {"train": "pairs.jsonl"}}
            recipe |= {"loss": {"name": name, beta: 0.1}, "learner": {"dtype": "fp32", "zero_stage": 1, "lr": 5e-5}}
            rows, _ = train(directory, name, recipe)
            margins = [row["implicit_margin"] / 0.1 for row in rows]
            ends = [statistics.fmean(margins[k * steps // 5 : (k + 1) * steps // 5]) for k in range(5)]
            print(
                f"{name:5}" + "".join(f"{value:9.1f}" for value in ends) + "   (means over fifths of the run)",
                flush=True,
            )


def memory() -> None:
    """Peak resident memory of one update, each in a process of its own, with and without a second model."""
    with tempfile.TemporaryDirectory() as out:
        model = Path(out) / "model"
        make_model(model, 0, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12)
        size = (model / "model.safetensors").stat().st_size
        print(f"model: {size / 2**20:.0f} MiB in fp32")
        peaks = {}
        for name, recorded in (("orpo", False), ("simpo", False), ("dpo", False), ("dpo", True)):
            done = subprocess.run(
                [sys.executable, __file__, "one-update", str(model), name, str(int(recorded))],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            label = f"{name}, log-probs recorded" if recorded else name
            peaks[label] = float(done.stdout.split()[-1])
            print(f"{label:26}{peaks[label] / 2**20:8.0f} MiB", flush=True)
        print(f"DPO with a copy over ORPO: {(peaks['dpo'] - peaks['orpo']) / size:.2f} models")


def one_update(model: str, name: str, recorded: bool) -> None:
    from volley.learner.config import LearnerConfig
    from volley.learner.losses import LOSSES
    from volley.learner.ranks.group import LearnerGroup
    from volley.learner.ranks.rank import LearnerRank
    from volley.learner.ranks.spec import RankSpec
    from volley.learner.signals.batch import Batch
    from volley.learner.signals.pairs import Pairs
    from volley.learner.signals.rows import Rows
    from volley.rollout.types import Completion, as_token_ids

    config, loss = LearnerConfig(dtype="fp32", zero_stage=1, lr=1e-5), LOSSES[name]()
    rank = LearnerRank(RankSpec(config, loss, Path(model), 2, 1.0, 0, records_reference=recorded))
    rng = random.Random(0)

    def draw(length: int) -> Any:
        return as_token_ids([rng.randrange(2, 20) for _ in range(length)])

    rows = Rows.from_completions(
        [(draw(8), Completion.single(draw(32), (0.0,) * 32, "", "data", 0, 0)) for _ in range(4)], 0
    )

    async def call(method: str, *arguments: Any) -> Any:
        return getattr(rank, method)(*arguments)

    async def update() -> None:
        learner = LearnerGroup([call], loss, config.max_tokens_per_micro_batch)
        if recorded:
            with tempfile.TemporaryDirectory() as out:
                await learner.record_reference(rows, Path(out) / "table.parquet")
        await learner.update(Batch(rows, Pairs(np.array([[0, 1], [2, 3]]), np.array([0, 0, 1, 1]))))

    asyncio.run(update())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
    os._exit(0)


def in_directory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        gsm8k(options, (options.out or Path(temporary)).resolve())


def main() -> None:
    if sys.argv[1:2] == ["one-update"]:
        one_update(sys.argv[2], sys.argv[3], sys.argv[4] == "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gsm8k", "small", "memory"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=[], help="gsm8k: names of losses")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2], help="gsm8k: thirds held out in turn")
    parser.add_argument("--lr", type=float, default=0.0, help="gsm8k: instead of each loss's own")
    parser.add_argument("--warm-up", type=int, default=100, help="gsm8k: SFT steps before")
    parser.add_argument("--max-characters", type=int, default=1000, help="gsm8k: of question and solution")
    parser.add_argument("--out", type=Path, help="gsm8k: a directory to keep; a warm-up that is there is used again")
    options = parser.parse_args()
    if options.what == "gsm8k" and "VOLLEY_TEST_DATA" not in os.environ:
        parser.error("gsm8k reads gsm8k/model_solutions.jsonl in the directory that VOLLEY_TEST_DATA names; set it.")
    {
        "gsm8k": lambda: in_directory(options),
        "small": lambda: small(options.epochs),
        "memory": memory,
    }[options.what]()


if __name__ == "__main__":
    main()
