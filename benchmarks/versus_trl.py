"""Volley against TRL 1.16 on the same workload, alternating runs on one machine.

    .venv/bin/python benchmarks/versus_trl.py speed [--steps 24] [--seeds 1]
    .venv/bin/python benchmarks/versus_trl.py learning [--seeds 3] [--target 0.9]

The workload is the demo's: its warmed-up model (made by `make demo`), additions, 32 prompts x 8 completions of about 20
tokens, the same reward functions, learning rate, clipping, bf16, no reference model, one update per batch, groups
without signal kept. TRL gets a venv of its own, `.venv-trl`, that sees this project's torch, transformers and vLLM, so
both run on the same versions; it is run with its own generation, two threads that sleep when idle. (`--systems
trl-vllm` runs it with vLLM in its process, which on CPUs ends at the first weight update: TRL 1.16 loads into layers
whose weights vLLM has packed away.) Volley runs in one process, synchronous and with max_staleness 1, and on a private
Ray cluster with one rollout worker and one learner rank of one core each (max_staleness 2).

speed: median samples/s over the steps after the first quarter. learning: seconds of training until the mean training
accuracy of five steps reaches the target, start-up left out on both sides. Prints a table and the ratios.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from volley.cluster.storage.metrics import read_rows
from volley.learner.ranks.zero import free_port

ROOT = Path(__file__).resolve().parent.parent
TRL_VENV = ROOT / ".venv-trl"
MODEL = ROOT / "runs" / "demo-warm-up" / "model"
DATA = ROOT / "runs" / "demo" / "data" / "train.jsonl"
LR = 1e-4
SYSTEMS = ("trl-generate", "volley-sync", "volley-async", "volley-ray")
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_LOGGING_LEVEL": "ERROR"}

TRL_RUN = """
import json, sys, time
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from volley.rewards.math.verifier import verify
from volley.rewards.think_format import reward as think_format
options = json.loads(sys.argv[1])
rows = [json.loads(line) for line in open(options["data"])]
accuracies, steps = [], []
def correct(prompts, completions, answer, **_):
    scores = [float(verify(c, a)) for c, a in zip(completions, answer)]
    accuracies.append(sum(scores) / len(scores))
    return scores
def form(prompts, completions, **_):
    return [0.1 * think_format(prompt=p, response=c, answer="") for p, c in zip(prompts, completions)]
class Clock(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.started = time.perf_counter()
    def on_step_end(self, args, state, control, **_):
        steps.append({"wall_s": time.perf_counter() - self.started, "accuracy": accuracies[-1]})
        if len(steps) > 4 and sum(step["accuracy"] for step in steps[-5:]) / 5 >= options["target"]:
            control.should_training_stop = True
config = GRPOConfig(
    output_dir=options["out"], max_steps=options["steps"], seed=options["seed"], learning_rate=options["lr"],
    lr_scheduler_type="constant", per_device_train_batch_size=256, gradient_accumulation_steps=1, num_generations=8,
    max_completion_length=40, temperature=1.0, beta=0.0, epsilon=0.2, epsilon_high=0.28, loss_type="dapo",
    scale_rewards="group", bf16=True, use_cpu=True, max_grad_norm=1.0, weight_decay=0.0, gradient_checkpointing=False,
    save_strategy="no", report_to=[], logging_steps=1000, disable_tqdm=True, dataloader_num_workers=0,
    use_vllm=options["vllm"], vllm_mode="colocate", vllm_gpu_memory_utilization=0.4, vllm_max_model_length=128)
tokenizer = AutoTokenizer.from_pretrained(options["model"])
model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32)
trainer = GRPOTrainer(model=model, processing_class=tokenizer, args=config, train_dataset=Dataset.from_list(rows),
                      reward_funcs=[correct, form], callbacks=[Clock()])
trainer.train()
print(json.dumps(steps), flush=True)
import os; os._exit(0)
"""


def run_trl(vllm: bool, steps: int, seed: int, target: float) -> list[dict[str, float]]:
    """wall_s since the start of training and training accuracy, step by step, until the target is reached."""
    with tempfile.TemporaryDirectory() as out:
        options = {"model": str(MODEL), "data": str(DATA), "out": out, "steps": steps, "seed": seed}
        options |= {"lr": LR, "target": target, "vllm": vllm}
        done = subprocess.run(
            [str(TRL_VENV / "bin" / "python"), "-W", "ignore", "-c", TRL_RUN, json.dumps(options)],
            env={
                **os.environ,
                **ENVIRONMENT,
                "PYTHONPATH": str(ROOT),
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "RANK": "0",
                "LOCAL_RANK": "0",
                "WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
            },
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"TRL failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_volley(system: str, steps: int, seed: int, target: float) -> list[dict[str, float]]:
    """As `run_trl`, from the run's metrics."""
    staleness = {"volley-sync": 0, "volley-async": 1, "volley-ray": 2}[system]
    recipe = {
        "name": "versus",
        "model": str(MODEL),
        "steps": steps,
        "seed": seed,
        "groups_per_step": 32,
        "max_staleness": staleness,
        "data": {"train": str(DATA)},
        "rollout": {"group_size": 8, "max_tokens": 40, "max_replacements": 0},
        "rewards": ["math", {"name": "think_format", "weight": 0.1}],
        "loss": {"name": "grpo", "clip_low": 0.2, "clip_high": 0.28},
        "launcher": "ray" if system == "volley-ray" else "local",
        "learner": {"dtype": "bf16", "zero_stage": 1, "lr": LR, "max_tokens_per_micro_batch": 8192},
    }
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        volley = Path(sys.executable).with_name("volley")
        metrics = Path(out) / "runs" / "versus" / "metrics.jsonl"
        process = subprocess.Popen(
            [str(volley), "train", str(path)], cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        found: list[dict[str, float]] = []
        while process.poll() is None and math.isnan(seconds_to(target, found)):
            time.sleep(0.5)
            found = read_rows(metrics)
        process.kill()
        if process.wait() > 0:
            raise RuntimeError(f"Volley failed; see: volley train with the recipe {json.dumps(recipe)}")
        found = read_rows(metrics)
    return [{"wall_s": row["wall_s"], "accuracy": row["accuracy"]} for row in found]


def run(system: str, steps: int, seed: int, target: float) -> list[dict[str, float]]:
    if system.startswith("trl"):
        return run_trl(system == "trl-vllm", steps, seed, target)
    return run_volley(system, steps, seed, target)


def samples_per_s(steps: list[dict[str, float]]) -> float:
    walls = [step["wall_s"] for step in steps][len(steps) // 4 :]
    return 256 / statistics.median(after - before for before, after in itertools.pairwise(walls))


def seconds_to(target: float, steps: list[dict[str, float]]) -> float:
    """NaN when it was not reached."""
    for i in range(4, len(steps)):
        if statistics.mean(step["accuracy"] for step in steps[i - 4 : i + 1]) >= target:
            return steps[i]["wall_s"]
    return math.nan


def ensure_trl() -> None:
    """A venv that shares this project's packages, with TRL beside them."""
    if (TRL_VENV / "bin" / "python").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(TRL_VENV)], check=True)
    stack = next((ROOT / ".venv" / "lib").glob("python3.*/site-packages"))
    own = next((TRL_VENV / "lib").glob("python3.*/site-packages"))
    (own / "stack.pth").write_text(f"{stack}\n")
    pip = [str(TRL_VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "trl==1.16.0", "accelerate==1.15.0"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("speed", "learning"))
    parser.add_argument("--steps", type=int, default=0, help="default: 24 for speed, 240 for learning")
    parser.add_argument("--seeds", type=int, default=0, help="default: 1 for speed, 3 for learning")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--systems", default="", help="comma-separated; default: all, or the best two for learning")
    options = parser.parse_args()
    if not MODEL.exists():
        sys.exit("the warmed-up model is not there; run make demo first")
    ensure_trl()
    is_speed = options.what == "speed"
    systems = (
        options.systems.split(",") if options.systems else SYSTEMS if is_speed else ("trl-generate", "volley-async")
    )
    steps = options.steps or (24 if is_speed else 240)
    figures: dict[str, list[float]] = {system: [] for system in systems}
    for seed in range(options.seeds or (1 if is_speed else 3)):
        for system in systems:
            found = run(system, steps, seed, math.inf if is_speed else options.target)
            figure = samples_per_s(found) if is_speed else seconds_to(options.target, found)
            figures[system].append(figure)
            last = statistics.mean(step["accuracy"] for step in found[-5:])
            speed = f"{samples_per_s(found):.1f} samples/s"
            said = speed if is_speed else f"{figure:.1f} s to {options.target}, {len(found)} steps, {speed}"
            print(f"seed {seed}  {system:<13} {said}  (last accuracy {last:.2f})", flush=True)
    print_ratios(figures)


def print_ratios(figures: dict[str, list[float]]) -> None:
    medians: dict[str, Any] = {system: statistics.median(values) for system, values in figures.items()}
    print({system: round(value, 1) for system, value in medians.items()})
    for volley in (system for system in medians if system.startswith("volley")):
        for trl in (system for system in medians if system.startswith("trl")):
            print(f"{volley} / {trl}: {medians[volley] / medians[trl]:.2f}")


if __name__ == "__main__":
    main()
