"""The preference family where it can be seen: on real pairs, on little data, on pairs confounded by length, in memory.

    .venv/bin/python benchmarks/preference.py gsm8k [--steps 100]    every offline method on real solutions
    .venv/bin/python benchmarks/preference.py small [--epochs 20]    DPO and IPO on 200 pairs, over and over
    .venv/bin/python benchmarks/preference.py length [--seeds 3]     DPO and SimPO where the chosen are longer
    .venv/bin/python benchmarks/preference.py memory                 what a reference model costs

gsm8k: solutions of a question, correct against incorrect, from VOLLEY_TEST_DATA/gsm8k/model_solutions.jsonl (as
labels for KTO); one question in three is held out. A small Llama of one token a character, first taught the train
side's correct solutions by SFT. Accuracy on held-out pairs: "own reward" by what the loss compares (KTO's, which sees
labels only, from log-probs of both models), where ties, such as all pairs at the start of DPO, count half; "a token"
by mean log-prob, in which all of them can be compared. small and length: the demo's model and additions (after `make
demo`). length: the model pauses for 1 to 6 tokens in its thought; chosen are right and pause for 3 to 6, rejected are
wrong and pause for 1 to 4.
"""

import argparse
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

from solutions import pair_accuracies, write_solutions

from cluster.demo import make_model, worked_answer
from cluster.metrics import read_rows

ROOT = Path(__file__).resolve().parent.parent
WARM = ROOT / "runs" / "demo-warm-up" / "model"
PROBLEMS = ROOT / "runs" / "demo" / "data"
RATES = {"dpo": 3e-4, "ipo": 3e-5, "kto": 3e-4, "simpo": 5e-5, "orpo": 3e-4}
OPTIONS: dict[str, dict[str, float]] = {"orpo": {"odds_weight": 1.0}}
"""gsm8k: beside the rate. ORPO's odds ratio at a tenth of its NLL, the default, moved the likelihood alone."""
LENGTH_RATES = {"dpo": 3e-5, "simpo": 3e-5}
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


def gsm8k(steps: int, only: list[str], fold: int, lr: float, warm_up: int, max_characters: int, out: Path) -> None:
    source = Path(os.environ["VOLLEY_TEST_DATA"]) / "gsm8k" / "model_solutions.jsonl"
    sizes = write_solutions(source, out, fold, max_characters)
    print(", ".join(f"{name} {size:,}" for name, size in sizes.items()), flush=True)
    pairs = [json.loads(line) for line in (out / "pairs-test.jsonl").read_text().splitlines()]
    base = {"eval_every": steps, "steps": steps}
    start = out / "runs" / "sft" / "model"
    if not start.exists():
        sft = {"model": str(out / "start"), "steps": warm_up, "loss": "sft", "groups_per_step": 16}
        sft |= {"data": {"train": "shown-train.jsonl"}, "learner": {**SOLUTIONS_LEARNER, "lr": 3e-3}}
        rows, _ = train(out, "sft", sft)
        print(f"SFT: loss {rows[0]['loss']:.2f} -> {rows[-1]['loss']:.2f} nats a character", flush=True)
    before = pair_accuracies(start, start, pairs)
    print(
        f"{'':7}{'lr':>8}{'own reward':>18}{'a token':>18}{'loss':>18}{'chosen':>18}   (start -> after {steps} steps)"
    )
    for name in only or RATES:
        kind, groups = ("labels", 16) if name == "kto" else ("pairs", 8)
        rate = lr or RATES[name]
        recipe = {**base, "model": str(start), "groups_per_step": groups}
        recipe |= {"loss": {"name": name, **OPTIONS.get(name, {})}}
        recipe |= {"data": {"train": f"{kind}-train.jsonl", "test": f"{kind}-test.jsonl"}}
        recipe["learner"] = {**SOLUTIONS_LEARNER, "lr": rate}
        _, (first, *_, last) = train(out, f"{name}-{rate:g}", recipe)
        after = pair_accuracies(out / "runs" / f"{name}-{rate:g}" / "model", start, pairs)
        # What the loss itself measures; KTO has labels only, so there it is computed from both models.
        own = [each.get("preference_accuracy", mine["log_ratio"]) for each, mine in ((first, before), (last, after))]
        chosen = [each.get("chosen_logprob", math.nan) for each in (first, last)]
        cells = (own, (before["per_token"], after["per_token"]), (first["loss"], last["loss"]), chosen)
        print(f"{name:7}{rate:8g}" + "".join(f"{a:>10.3f} -> {b:.3f}" for a, b in cells), flush=True)


def spaced(answer: str, pauses: int) -> str:
    """A worked answer that pauses between its two columns: the same thought in more tokens."""
    return answer.replace(" ", " " * pauses, 1)


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


def length(seeds: range, rates: dict[str, float]) -> None:
    problems = [json.loads(line) for line in (PROBLEMS / "train.jsonl").read_text().splitlines()]
    print(f"{'':8}{'lr':>8}{'seed':>5}{'pass@1':>18}{'response tokens':>22}   (start -> end)")
    for seed in seeds:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as out:
            directory = Path(out)
            shown, pairs = [], []
            for problem in problems:
                a, b = map(int, problem["prompt"][:-2].split("+"))
                right, wrong = worked_answer(a, b), worked_answer(a, b, rng)
                shown.append({**problem, "completion": spaced(right, rng.randint(1, 6))})
                chosen, rejected = spaced(right, rng.randint(3, 6)), spaced(wrong, rng.randint(1, 4))
                pairs.append({"prompt": problem["prompt"], "chosen": chosen, "rejected": rejected})
            write(directory / "shown.jsonl", shown)
            write(directory / "pairs.jsonl", pairs)
            base = {
                "seed": seed,
                "rewards": ["math"],
                "rollout": {"max_tokens": 60},
                "eval": {"max_prompts": 256, "samples": 4},
            }
            learner = {"dtype": "fp32", "zero_stage": 1, "warmup_steps": 5}
            sft = {
                "model": str(WARM),
                "steps": 60,
                "groups_per_step": 128,
                "loss": "sft",
                "learner": {**learner, "lr": 5e-4},
            }
            train(directory, "sft", {**sft, "seed": seed, "data": {"train": "shown.jsonl"}})
            for name, rate in rates.items():
                recipe = {
                    **base,
                    "model": str(directory / "runs" / "sft" / "model"),
                    "steps": 60,
                    "groups_per_step": 32,
                }
                recipe |= {"data": {"train": "pairs.jsonl", "test": str(PROBLEMS / "test.jsonl")}, "eval_every": 20}
                recipe |= {"loss": {"name": name}, "learner": {**learner, "lr": rate}}
                _, found = train(directory, name, recipe)
                cells = [
                    " -> ".join(f"{each[key]:.2f}" for each in found) for key in ("pass@1", "response_length_mean")
                ]
                print(f"{name:8}{rate:8g}{seed:>5}   {cells[0]}   {cells[1]}", flush=True)


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
    from learner.batch import Batch, Pairs, Row
    from learner.config import LearnerConfig
    from learner.losses import LOSSES
    from learner.rank import LearnerRank

    config = LearnerConfig(dtype="fp32", zero_stage=1, lr=1e-5)
    rank = LearnerRank(config, LOSSES[name](), Path(model), 2, 1.0, 0, records_reference=recorded)
    rng = random.Random(0)
    rows = tuple(
        Row(
            tuple(rng.randrange(2, 20) for _ in range(8)),
            tuple(rng.randrange(2, 20) for _ in range(32)),
            (0.0,) * 32,
            0,
        )
        for _ in range(4)
    )
    if recorded:
        with tempfile.TemporaryDirectory() as out:
            rank.record_reference(rows, Path(out) / "table.parquet")
    rank.update(Batch(rows, Pairs(((0, 1), (2, 3)), ((0, 1), (2, 3)))))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
    os._exit(0)


def in_directory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        gsm8k(
            options.steps,
            options.only,
            options.fold,
            options.lr,
            options.warm_up,
            options.max_characters,
            out.resolve(),
        )


def main() -> None:
    if sys.argv[1:2] == ["one-update"]:
        one_update(sys.argv[2], sys.argv[3], sys.argv[4] == "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gsm8k", "small", "length", "memory"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="gsm8k: names of losses")
    parser.add_argument("--fold", type=int, default=0, help="gsm8k: which third of the questions is held out")
    parser.add_argument("--lr", type=float, default=0.0, help="gsm8k: instead of each loss's own")
    parser.add_argument("--warm-up", type=int, default=100, help="gsm8k: SFT steps before")
    parser.add_argument("--max-characters", type=int, default=500, help="gsm8k: of question and solution")
    parser.add_argument("--out", type=Path, help="gsm8k: a directory to keep; a warm-up that is there is used again")
    options = parser.parse_args()
    if options.what == "gsm8k" and "VOLLEY_TEST_DATA" not in os.environ:
        parser.error("gsm8k reads gsm8k/model_solutions.jsonl in the directory that VOLLEY_TEST_DATA names; set it.")
    {
        "gsm8k": lambda: in_directory(options),
        "small": lambda: small(options.epochs),
        "length": lambda: length(range(options.first_seed, options.first_seed + options.seeds), LENGTH_RATES),
        "memory": memory,
    }[options.what]()


if __name__ == "__main__":
    main()
