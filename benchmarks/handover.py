"""Driver time per step from scored groups to what each learner rank receives, on one core.

    .venv/bin/python benchmarks/handover.py [--tokens 8000000] [--ranks 8]

Three parts: `make_batch` (groups to rows and signal), `make_shards` (micro-batches and each rank's part), and the
serialisation of every shard as Ray does it (pickle protocol 5, whose array buffers are copied once into shared memory).
"""

import argparse
import pickle
import random
import time
from collections.abc import Iterator

import numpy as np

from volley.learner.losses import LOSSES
from volley.learner.ranks.shards import make_shards
from volley.learner.signals.batch import Shard, make_batch
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup

GROUP_SIZE = 8
PROMPT_TOKENS = 128
COMPLETION_TOKENS = 1000  # on average; from 100 to 1900


def make_groups(num_tokens: int) -> list[ScoredGroup]:
    """Groups with about this many sampled tokens."""
    rng, generator = random.Random(0), np.random.default_rng(0)

    def completion() -> Completion:
        length = rng.randint(100, 2 * COMPLETION_TOKENS - 100)
        ids = generator.integers(0, 150_000, length, dtype=np.int32)
        return Completion.single(ids, np.full(length, -0.5, dtype=np.float32), "", "stop", 0, 0)

    groups = []
    for ordinal in range(num_tokens // COMPLETION_TOKENS // GROUP_SIZE):
        ids = generator.integers(0, 150_000, PROMPT_TOKENS, dtype=np.int32)
        completions = tuple(completion() for _ in range(GROUP_SIZE))
        scores = tuple(Score(float(rng.randrange(2)), {}) for _ in range(GROUP_SIZE))
        groups.append(ScoredGroup(Prompt(ordinal, ordinal, "", ids, ""), completions, scores))
    return groups


def measure(
    num_tokens: int = 8_000_000, num_ranks: int = 8, max_tokens: int = 32_768, loss: str = "grpo"
) -> dict[str, float]:
    """Seconds of driver time of each part, and how many sampled tokens there were. Every completion is handed over,
    also those without gradient, which an update leaves out."""
    groups, kind = make_groups(num_tokens), LOSSES[loss]()
    space = bytearray(16 * num_tokens)
    started = time.process_time()
    batch = make_batch(groups, kind, 0)
    batched = time.process_time()
    shards = make_shards(batch, max_tokens, num_ranks)
    planned = time.process_time()
    size = sum(_serialise(shard, space) for shard in shards)
    done = time.process_time()
    return {
        "tokens": batch.rows.num_trained,
        "make_batch_s": batched - started,
        "plan_s": planned - batched,
        "serialise_s": done - planned,
        "total_s": done - started,
        "bytes_per_token": size / max(1, batch.rows.num_trained),
    }


def _serialise(shard: Shard, space: bytearray) -> int:
    """Copies the shard into `space`, and returns its bytes."""
    buffers: list[pickle.PickleBuffer] = []
    end = 0
    for part in [pickle.dumps(shard, protocol=5, buffer_callback=buffers.append), *_raw(buffers)]:
        space[end : end + len(part)] = part
        end += len(part)
    return end


def _raw(buffers: list[pickle.PickleBuffer]) -> Iterator[memoryview]:
    for buffer in buffers:
        yield buffer.raw()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--loss", choices=LOSSES, default="grpo")
    options = parser.parse_args()
    found = measure(options.tokens, options.ranks, loss=options.loss)
    print("  ".join(f"{name} {value:,.3g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
