"""Learner ranks in processes of their own, for `test_zero.py`: a process can join only one process group.

A real `LearnerGroup` in this process calls them through pipes. They are forked from one server that has imported
everything, because importing takes longer than what they do.
"""

import asyncio
import multiprocessing
import os
import random
import time
import traceback
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.learner.rows import Row, rows_of
from volley.learner.config import LearnerConfig
from volley.learner.losses import LOSSES
from volley.learner.ranks.group import LearnerGroup
from volley.learner.ranks.rank import LearnerRank
from volley.learner.ranks.spec import RankPlace, RankSpec
from volley.learner.ranks.weights import state_dict
from volley.learner.ranks.zero import free_port
from volley.learner.signals.advantages import Advantages
from volley.learner.signals.batch import Batch, Signal
from volley.learner.signals.labels import Labels
from volley.learner.signals.pairs import Pairs
from volley.learner.signals.returns import Returns
from volley.learner.signals.rows import Rows

TIMEOUT_S = 120
PRELOADED = [
    "volley.learner.ranks.rank",
    "volley.learner.losses",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "deepspeed.runtime.zero.muon.original_muon",  # which imports torch's compiler
]


def batch(signal: type[Signal]) -> Batch:
    """14 completions of one turn, with what the signal's losses read."""
    rng = random.Random(0)
    rows = []
    for _ in range(14):
        prompt = tuple(rng.randrange(2, 20) for _ in range(rng.randrange(3, 9)))
        completion = tuple(rng.randrange(2, 20) for _ in range(rng.randrange(4, 20)))
        rows.append(Row(prompt, completion, tuple(rng.uniform(-4, -2) for _ in completion)))
    numbers = np.arange(len(rows))
    if signal is Pairs:
        return Batch(rows_of(rows), Pairs(numbers.reshape(-1, 2), numbers // 2))
    if signal is Labels:
        mismatched = rows_of([rows[i - 1]._replace(prompt_ids=row.prompt_ids) for i, row in enumerate(rows)])
        return Batch(rows_of(rows), Labels(numbers % 7 != 0, mismatched))
    if signal is Returns:
        # What a value can foresee: the reward is in the prompt.
        rewards = np.array([float(row.prompt_ids[0] < 10) for row in rows])
        return Batch(rows_of(rows), Returns(rewards, gamma=1.0, lam=0.95, whiten=True))
    # Completions without advantage are skipped by the learner, and must count all the same.
    advantages = [0.0 if i % 4 == 3 else rng.gauss(0, 1) for i in numbers]
    return Batch(rows_of(rows), Advantages(np.array(advantages)))


def train(model: Path, out: Path, num_ranks: int = 1, **options: Any) -> tuple[list[dict[str, float]], Any]:
    """Metrics of three steps of a loss on a fixed batch, and the final weights.

    With `save` it stops after two steps and writes its state, with `resume` it continues from there. Raises
    AssertionError with the traceback of a rank that fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ends: list[Connection] = []
    processes = []
    port = free_port()
    try:
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            place = RankPlace(rank, num_ranks, port=port)
            process = context.Process(target=_run_rank, args=(theirs, place, _spec(model, num_ranks, options), options))
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        return asyncio.run(_steps(ends, options, out)), load_file(out)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spec(model: Path, num_ranks: int, options: dict[str, Any]) -> RankSpec:
    config = LearnerConfig(**{"lr": 1e-2, "ranks": num_ranks, **options["learner"]})
    loss = LOSSES[options.get("name", "grpo")](**options.get("loss", {}))
    return RankSpec(config, loss, model, 3, 1.0, 0, records_reference="recorded" in options)


async def _steps(ends: list[Connection], options: dict[str, Any], out: Path) -> list[dict[str, float]]:
    """The driver's side."""
    spec = _spec(Path(), len(ends), options)
    calls = [partial(_call, end) for end in ends]
    group = LearnerGroup(calls, spec.loss, spec.config.max_tokens_per_micro_batch)
    data = batch(spec.loss.signal)
    if "lam" in options.get("loss", {}):
        data = replace(data, signal=replace(data.signal, lam=options["loss"]["lam"]))
    if "recorded" in options:
        extra = [] if data.signal.auxiliary is None else [data.signal.auxiliary]
        await group.record_reference(Rows.joined([data.rows, *extra]), options["recorded"])
    if "resume" in options:
        await group.load(options["resume"], 2)
    metrics = []
    while group.step < (2 if "save" in options else options.get("steps", 3)):
        metrics.append(dict((await group.update(data)).metrics))
    if "save" in options:
        await group.save(options["save"])
    await asyncio.gather(*(call("write", out) for call in calls))
    return metrics


async def _call(end: Connection, method: str, *arguments: Any) -> Any:
    """Call a rank, and wait for its answer without blocking the event loop."""
    end.send((method, arguments))
    deadline = time.monotonic() + TIMEOUT_S
    while not end.poll():
        assert time.monotonic() < deadline, f"a rank has not answered {method} for {TIMEOUT_S} s"
        await asyncio.sleep(0.002)
    error, result = end.recv()
    assert not error, error
    return result


def _run_rank(end: Connection, place: RankPlace, spec: RankSpec, options: dict[str, Any]) -> None:
    """Answers calls with (traceback or "", result) until it is killed."""
    torch.set_num_threads(1)
    os.environ.update(options.get("environment", {}))
    learner = None
    while True:
        method, arguments = end.recv()
        try:
            learner = learner or LearnerRank(spec, place)
            if method == "write":
                end.send(("", _write(learner, place.rank, "head" in options, *arguments)))
            else:
                end.send(("", getattr(learner, method)(*arguments)))
        except Exception:
            end.send((traceback.format_exc(), None))


def _write(learner: LearnerRank, rank: int, with_head: bool, out: Path) -> None:
    """Write the weights, after checking that what is pushed is what is exported."""
    held = dict(learner.named_weights())  # the last is read when the first has been released long ago
    tensors = state_dict(learner._zero)
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())
    head = learner._zero.module.value_head
    if with_head:
        assert [meta.name for meta in learner.transfer("metas")] == list(tensors), "what is pushed is what is exported"
        with learner._zero.gathered(list(head.parameters())):
            tensors |= {f"value_head.{name}": each.detach().clone() for name, each in head.named_parameters()}
    if rank == 0:
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, out)
