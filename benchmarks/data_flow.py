"""What a token costs on its way from the engine to the learner, now and before tokens became arrays.

    .venv/bin/python benchmarks/data_flow.py [--tokens 2000000] [--rounds 3] [--ranks 8]

The same scenario runs in a process of its own with the modules of the current tree, and with those of the last commit
before the redesign (checked out into a temporary directory), in turn; shown is each stage's fastest round. Stages:

- door: vLLM's output becomes a `Completion`; in the engine's process or thread
- send: a poll's completions are serialised as Ray does it (pickle protocol 5, buffers copied once); in the worker
- receive: the poll's answer is read; on the driver, like all that follow
- group: completions and scores become scored groups, and the step's metrics are computed
- parquet: the groups become an Arrow record batch
- make_batch, plan, hand over: groups become rows and a signal, micro-batches, and each rank's serialised part. Before
  the redesign every rank planned for itself, and the whole batch was serialised once for all of them.
"""

import argparse
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BEFORE = "f6ba0d7"
ROOT = Path(__file__).resolve().parent.parent
GROUP_SIZE = 8
PROMPT_TOKENS = 128
COMPLETION_TOKENS = 1000
PER_POLL = 64
MAX_TOKENS = 32_768
ON_DRIVER = ("receive", "group", "parquet", "make_batch", "plan", "hand over")


def scenario(num_tokens: int, num_ranks: int, modules: SimpleNamespace) -> dict[str, float]:
    """Seconds of processor time of each stage. modules: what differs between the trees, see `before` and `now`."""
    draw = random.Random(0)
    num_groups = max(1, num_tokens // COMPLETION_TOKENS // GROUP_SIZE)
    outputs = [output_of(draw) for _ in range(num_groups * GROUP_SIZE)]
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        gc.collect()
        started = time.process_time()
        yield
        seconds[name] = time.process_time() - started

    gc.disable()
    with stage("door"):
        sampled = [modules.read(output) for output in outputs]
    del outputs
    polls = [modules.poll(sampled[i : i + PER_POLL]) for i in range(0, len(sampled), PER_POLL)]
    with stage("send"):
        messages = [serialised(poll()) for poll in polls]
    del sampled, polls
    with stage("receive"):
        completions = [each for message in messages for each in modules.arrived(deserialised(message))]
    scores = [modules.Score(float(draw.randrange(2)), {"math": 1.0}) for _ in completions]
    prompts = [modules.prompt(ordinal, [draw.randrange(150_000)] * PROMPT_TOKENS) for ordinal in range(num_groups)]
    with stage("group"):
        groups = [
            modules.ScoredGroup(prompt, tuple(completions[i : i + GROUP_SIZE]), tuple(scores[i : i + GROUP_SIZE]))
            for prompt, i in zip(prompts, range(0, len(completions), GROUP_SIZE), strict=True)
        ]
        modules.group_metrics(groups, 0)
    with stage("parquet"):
        modules.to_batch(groups, 1)
    with stage("make_batch"):
        batch = modules.make_batch(groups)
    with stage("plan"):
        parts = modules.plan(batch, MAX_TOKENS, num_ranks)
    with stage("hand over"):
        for part in parts:
            serialised(part)
    return {name: value / (num_groups * GROUP_SIZE * COMPLETION_TOKENS) * 1e9 for name, value in seconds.items()}


def output_of(draw: random.Random) -> SimpleNamespace:
    """A request's output as vLLM gives it."""
    return SimpleNamespace(
        token_ids=[draw.randrange(150_000) for _ in range(COMPLETION_TOKENS)],
        logprobs=SimpleNamespace(logprobs=[-draw.random() for _ in range(COMPLETION_TOKENS)]),
        text="text",
        finish_reason="stop",
        weight_versions=[SimpleNamespace(version="0")],
    )


def serialised(value: Any) -> tuple[bytes, list[bytes]]:
    """The message, and its buffers, copied once as into Ray's shared memory."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return message, [bytes(buffer.raw()) for buffer in buffers]


def deserialised(message: tuple[bytes, Sequence[bytes]]) -> Any:
    """What Ray gives the receiver: buffers stay where they are."""
    return pickle.loads(message[0], buffers=message[1])


def before() -> SimpleNamespace:
    """The modules of commit `BEFORE`."""
    # By name: in this tree these are other modules.
    batch, types, engine, worker = map(
        import_module, ("learner.batch", "rollout.types", "rollout.vllm_engine", "rollout.worker")
    )
    loss = import_module("learner.losses").LOSSES["grpo"]()

    def poll(some: Sequence[Any]) -> Callable[[], Any]:
        finished = tuple(worker.Finished(number, 0, completion) for number, completion in enumerate(some))
        return lambda: worker.Collected(finished, 1)

    return SimpleNamespace(
        read=lambda output: engine.read_completion(output, None, True, engine.Era()),
        poll=poll,
        arrived=lambda collected: [each.completion for each in collected.finished],
        prompt=lambda ordinal, ids: types.Prompt(ordinal, ordinal, "", tuple(ids), ""),
        Score=types.Score,
        ScoredGroup=types.ScoredGroup,
        group_metrics=import_module("cluster.metrics").group_metrics,
        to_batch=import_module("rollout.arrow").to_batch,
        make_batch=lambda groups: batch.make_batch(groups, loss, 0),
        plan=lambda rows, max_tokens, num_ranks: [rows],
    )


def now() -> SimpleNamespace:
    """The modules of this tree."""
    from volley.cluster.loop.group_metrics import group_metrics
    from volley.learner.losses import LOSSES
    from volley.learner.ranks.shards import make_shards
    from volley.learner.signals.batch import make_batch
    from volley.rollout.data.parquet import to_batch
    from volley.rollout.engines.messages import Collected, Finished
    from volley.rollout.engines.vllm import WeightsGeneration, read_completion
    from volley.rollout.types import Prompt, Score, ScoredGroup, as_token_ids

    def poll(some: Sequence[Any]) -> Callable[[], Any]:
        finished = [Finished(number, 0, completion) for number, completion in enumerate(some)]
        return lambda: Collected.pack(finished, 1)

    return SimpleNamespace(
        read=lambda output: read_completion(output, None, True, WeightsGeneration()),
        poll=poll,
        arrived=lambda collected: [each.completion for each in collected.finished()],
        prompt=lambda ordinal, ids: Prompt(ordinal, ordinal, "", as_token_ids(ids), ""),
        Score=Score,
        ScoredGroup=ScoredGroup,
        group_metrics=group_metrics,
        to_batch=to_batch,
        make_batch=lambda groups: make_batch(groups, LOSSES["grpo"](), 0),
        plan=make_shards,
    )


def run(tree: Path, which: str, options: argparse.Namespace) -> dict[str, float]:
    """Nanoseconds per token of each stage, measured in a process that imports from `tree`."""
    command = [sys.executable, __file__, "--which", which]
    command += ["--tokens", str(options.tokens), "--ranks", str(options.ranks)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree)
    if done.returncode:
        sys.exit(f"the scenario failed in {tree}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace) -> None:
    """Run both trees in turn and print the table."""
    fastest: dict[str, dict[str, float]] = {"before": {}, "now": {}}
    with tempfile.TemporaryDirectory() as directory:
        old = Path(directory) / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", old, BEFORE], check=True)
        try:
            for _ in range(options.rounds):
                for which, tree in (("before", old), ("now", ROOT)):
                    for name, value in run(tree, which, options).items():
                        fastest[which][name] = min(value, fastest[which].get(name, value))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", old], check=True)
    print(f"nanoseconds per sampled token, fastest of {options.rounds} rounds of {options.tokens:,} tokens")
    print(f"{'stage':12} {'before':>8} {'now':>8} {'before/now':>10}")
    stages = list(fastest["now"])
    for name in stages:
        show(name, fastest["before"][name], fastest["now"][name])
    for label, some in (("driver", ON_DRIVER), ("all", stages)):
        show(label, *(sum(fastest[which][name] for name in some) for which in ("before", "now")))


def show(name: str, old: float, new: float) -> None:
    print(f"{name:12} {old:8.1f} {new:8.1f} {old / max(new, 1e-9):10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--which", choices=["before", "now"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.which:
        modules = before() if options.which == "before" else now()
        scenario(1, options.ranks, modules)  # what loads at first use
        print(json.dumps(scenario(options.tokens, options.ranks, modules)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
