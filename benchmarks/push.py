"""A push over gloo against one raw broadcast of the same bytes, to one and to three receivers on one machine.

    .venv/bin/python benchmarks/push.py [--mib 500] [--rounds 5]

The push is what a learner and its engines do on the wire: tensors copied into the stream, buckets broadcast, checksums
on both sides; the raw one is a single broadcast of a tensor that is there already. They alternate; medians, of the
ratio too.
"""

import argparse
import itertools
import multiprocessing
import statistics
import time
from typing import Any

import torch

from volley.rollout.transport.stream import Group, TensorMeta, layout, listen, receive, send

BUCKET_BYTES = 32 << 20


def plan_of(mib: int) -> Any:
    """A synthetic model: layers of 8 MiB matrices and small vectors, bf16."""
    matrices = [TensorMeta(f"layer.{i}.weight", "bfloat16", (2048, 2048)) for i in range(mib // 8)]
    vectors = [TensorMeta(f"layer.{i}.norm", "bfloat16", (2048,)) for i in range(mib // 8)]
    return layout(itertools.chain(*zip(matrices, vectors, strict=True)), BUCKET_BYTES)


def receiver(rank: int, num_ranks: int, port: int, mib: int, rounds: int, barrier: Any) -> None:
    torch.set_num_threads(1)
    group = Group("127.0.0.1", port, rank, num_ranks, 60, 60, master_address="127.0.0.1")
    plan = plan_of(mib)
    stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
    for _ in range(rounds):
        barrier.wait()
        group.broadcast(stream).wait()
        barrier.wait()
        barrier.wait()
        receive(group, plan, stream)
        barrier.wait()


def measure(num_receivers: int, mib: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each raw broadcast and of the push after it."""
    listener = listen("127.0.0.1")
    port, num_ranks = listener.getsockname()[1], num_receivers + 1
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_ranks)
    processes = [
        context.Process(target=receiver, args=(rank, num_ranks, port, mib, rounds, barrier), daemon=True)
        for rank in range(1, num_ranks)
    ]
    for process in processes:
        process.start()
    group = Group("127.0.0.1", port, 0, num_ranks, 60, 60, listener=listener)
    plan = plan_of(mib)
    weights = [(meta.name, torch.randn(meta.shape).bfloat16()) for meta in plan.metas]
    stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
    raw, push = [], []
    for _ in range(rounds):
        barrier.wait()
        started = time.perf_counter()
        group.broadcast(stream).wait()
        barrier.wait()
        raw.append(time.perf_counter() - started)
        barrier.wait()
        started = time.perf_counter()
        send(group, plan, weights)
        barrier.wait()
        push.append(time.perf_counter() - started)
    for process in processes:
        process.join()
    return raw, push


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for num_receivers in (1, 3):
        raw, push = measure(num_receivers, options.mib, options.rounds)
        ratio = statistics.median(b / a for a, b in zip(raw, push, strict=True))
        seconds = f"raw {statistics.median(raw):.2f} s  push {statistics.median(push):.2f} s"
        print(f"{num_receivers} receivers: {seconds}  ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
