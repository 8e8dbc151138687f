"""Learner ranks in processes of their own, for `test_zero.py`: a process can join only one process group.

They are forked from one server that has imported everything, since that takes longer than what they do.
"""

import dataclasses
import multiprocessing
import os
import random
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from volley.learner.config import LearnerConfig
from volley.learner.losses import LOSSES
from volley.learner.ranks.rank import LearnerRank
from volley.learner.ranks.weights import state_dict
from volley.learner.ranks.zero import free_port
from volley.learner.signals.batch import Advantages, Batch, Labels, Pairs, Rewards, Row

TIMEOUT_S = 120
PRELOADED = [
    "volley.learner.ranks.rank",
    "volley.learner.losses",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "deepspeed.runtime.zero.muon.original_muon",  # which imports torch's compiler
]


def batch(signal: str) -> Batch:
    rng = random.Random(0)
    rows = []
    for _ in range(14):
        prompt = tuple(rng.randrange(2, 20) for _ in range(rng.randrange(3, 9)))
        completion = tuple(rng.randrange(2, 20) for _ in range(rng.randrange(4, 20)))
        rows.append(Row(prompt, completion, tuple(rng.uniform(-4, -2) for _ in completion), 0))
    if signal == "pairs":
        pairs = tuple((i, i + 1) for i in range(0, len(rows), 2))
        return Batch(tuple(rows), Pairs(pairs, pairs))
    if signal == "labels":
        mismatched = tuple(dataclasses.replace(rows[i - 1], prompt_ids=row.prompt_ids) for i, row in enumerate(rows))
        return Batch(tuple(rows), Labels(tuple(i % 7 != 0 for i in range(len(rows))), mismatched))
    if signal == "rewards":
        # What a value can foresee: the reward is in the prompt.
        return Batch(tuple(rows), Rewards(tuple(float(row.prompt_ids[0] < 10) for row in rows)))
    # Rows without advantage are skipped by the learner, and must count all the same.
    return Batch(tuple(rows), Advantages(tuple(0.0 if i % 4 == 3 else rng.gauss(0, 1) for i in range(len(rows)))))


def train(model: Path, out: Path, num_ranks: int = 1, **options: Any) -> tuple[list[dict[str, float]], Any]:
    """Metrics of three steps, and the final weights. Raises AssertionError with the traceback of a rank that fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ends, processes = [], []
    port = free_port()
    try:
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run_rank, args=(theirs, rank, num_ranks, port, model, out, options))
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        told = []
        for rank, end in enumerate(ends):
            assert end.poll(TIMEOUT_S), f"rank {rank} of {num_ranks} has not answered for {TIMEOUT_S} s"
            told.append(end.recv())
    finally:
        for process in processes:
            process.kill()
            process.join()
    for each in told:
        assert isinstance(each, list), each
    return told[0], load_file(out)


def _run_rank(told: Connection, *arguments: Any) -> None:
    """Sends the metrics of each step, or a traceback; then waits to be killed."""
    try:
        told.send(_steps(*arguments))
    except Exception:
        told.send(traceback.format_exc())
    told.poll(None)


def _steps(
    rank: int, num_ranks: int, port: int, model: Path, out: Path, options: dict[str, Any]
) -> list[dict[str, float]]:
    """Three steps of a loss on a fixed batch. With `save` and `resume`, stops after two steps and writes its state, or
    goes on from it."""
    torch.set_num_threads(1)
    os.environ.update(options.get("environment", {}))
    config = LearnerConfig(**{"lr": 1e-2, "ranks": num_ranks, **options["learner"]})
    name = options.get("name", "grpo")
    loss = LOSSES[name](**options.get("loss", {}))
    learner = LearnerRank(
        config, loss, model, 3, 1.0, 0, rank, num_ranks, port, records_reference="recorded" in options
    )
    data = batch(loss.signal)
    if "recorded" in options:
        extra = data.signal.mismatched if isinstance(data.signal, Labels) else ()
        learner.record_reference(data.rows + extra, options["recorded"])
    if "resume" in options:
        learner.load(options["resume"], 2)
    metrics = []
    while learner.step < (2 if "save" in options else options.get("steps", 3)):
        metrics.append(dict(learner.update(data).metrics))
    if "save" in options:
        learner.save(options["save"])
    held = dict(learner.named_weights())  # the last is read when the first has been released long ago
    tensors = state_dict(learner._zero)
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())
    head = learner._zero.module.value_head
    if "head" in options:
        assert [meta.name for meta in learner.transfer("metas")] == list(tensors), "what is pushed is what is exported"
        with learner._zero.gathered(list(head.parameters())):
            tensors |= {f"value_head.{name}": each.detach().clone() for name, each in head.named_parameters()}
    if rank == 0:
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, out)
    return metrics
