"""One learner rank in a process of its own, for `test_zero.py`: a process can join only one process group.

    python zero_driver.py RANK NUM_RANKS PORT MODEL_DIR JSON_OPTIONS

Takes three steps of a loss on a fixed batch and prints, on rank 0, one JSON object: metrics of each step and the final
weights' path. With `save` and `resume`, stops after two steps and writes its state, or goes on from it.
"""

import dataclasses
import json
import os
import random
import sys
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")

from safetensors.torch import save_file

from learner.batch import Advantages, Batch, Labels, Pairs, Rewards, Row
from learner.config import LearnerConfig
from learner.losses import LOSSES
from learner.rank import LearnerRank
from learner.weights import state_dict


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


def main() -> None:
    rank, num_ranks, port = (int(each) for each in sys.argv[1:4])
    model_dir, options = Path(sys.argv[4]), json.loads(sys.argv[5])
    config = LearnerConfig(**{"lr": 1e-2, "ranks": num_ranks, **options["learner"]})
    name = options.get("name", "grpo")
    loss = LOSSES[name](**options.get("loss", {}))
    learner = LearnerRank(
        config, loss, model_dir, 3, 1.0, 0, rank, num_ranks, port, records_reference="recorded" in options
    )
    data = batch(loss.signal)
    if "recorded" in options:
        extra = data.signal.mismatched if isinstance(data.signal, Labels) else ()
        learner.record_reference(data.rows + extra, Path(options["recorded"]))
    if "resume" in options:
        learner.load(Path(options["resume"]), 2)
    metrics = []
    while learner.step < (2 if "save" in options else options.get("steps", 3)):
        metrics.append(dict(learner.update(data).metrics))
    if "save" in options:
        learner.save(Path(options["save"]))
    tensors = state_dict(learner._zero)
    head = learner._zero.module.value_head
    if "head" in options:
        assert [meta.name for meta in learner.transfer("metas")] == list(tensors), "what is pushed is what is exported"
        with learner._zero.gathered(list(head.parameters())):
            tensors |= {f"value_head.{name}": each.detach().clone() for name, each in head.named_parameters()}
    if rank == 0:
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, options["out"])
        print(json.dumps(metrics), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
