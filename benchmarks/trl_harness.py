"""What a comparison with TRL's losses is made of: trainers around one small model, log-probs, a row of the table."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volley.cluster.cli.demo import make_model
from volley.learner.losses.common import Loss, MicroBatch
from volley.learner.signals.batch import SignalTensors
from volley.learner.signals.pairs import PairTensors

TOLERANCE, SMALL = 1e-5, 0.01
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TRAINING = {
    "max_steps": 1,
    "learning_rate": 1e-3,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Comparison:
    """One row. Values are NaN where only gradients are to be compared. agrees: what is expected."""

    loss: str
    setting: str
    values: tuple[float, float]
    value_difference: float
    gradient_difference: float
    agrees: bool
    note: str
    clip_share: float | None = None

    @property
    def is_as_expected(self) -> bool:
        differences = (self.value_difference, self.gradient_difference)
        is_sound = all(map(math.isfinite, differences)) and (self.clip_share is None or 0 < self.clip_share < 1)
        return is_sound and (max(differences) <= TOLERANCE) == self.agrees


class Bench:
    """A checkpoint and the trainers made of it."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self.directory = directory
        make_model(directory / "model", seed=0, **SHAPE)
        self.tokenizer = AutoTokenizer.from_pretrained(directory / "model")

    def trainer(self, kind: Any, config: Any, rows: list[dict[str, Any]], **parts: Any) -> Any:
        """A trainer whose policy was moved away from the checkpoint, which its reference is."""
        from datasets import Dataset
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.directory / "model", dtype=torch.float32)
        made = kind(
            model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=self.tokenizer, **parts
        )
        move(made.model, 1, 0.05)
        made.model.train()
        # What TRL's training loop would have set.
        made.current_gradient_accumulation_steps = 1
        return made

    def options(self, **more: Any) -> dict[str, Any]:
        return {"output_dir": str(self.directory / "out"), **TRAINING, **more}


def move(model: Any, seed: int, spread: float) -> None:
    """Add noise to all weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)


def logprobs(model: Any, ids_NL: Tensor, attention_NL: Tensor) -> Tensor:
    """Of every token but the first, [N, L - 1]."""
    logits = model(input_ids=ids_NL, attention_mask=attention_NL).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, ids_NL[:, 1:, None]).squeeze(-1)


def compare(
    name: str,
    setting: str,
    model: Any,
    theirs: Tensor,
    ours: Tensor,
    note: str,
    *,
    agrees: bool = True,
    clip_share: float | None = None,
    only_gradients: bool = False,
) -> Comparison:
    """A row from two losses whose graphs end in the model's parameters."""
    parameters = list(model.parameters())
    theirs_G, ours_G = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in (theirs, ours)
    )
    values = (float("nan"),) * 2 if only_gradients else (theirs.item(), ours.item())
    return Comparison(
        name,
        setting,
        (values[0], values[1]),
        0.0 if only_gradients else abs(values[1] - values[0]) / max(abs(values[0]), SMALL),
        ((ours_G - theirs_G).norm() / theirs_G.norm()).item(),
        agrees,
        note,
        clip_share,
    )


def evaluate(loss: Loss, micro: MicroBatch[Any]) -> tuple[Tensor, float | None]:
    """The loss as an update has it, and the share of clipped tokens."""
    result = loss.loss_sum(micro)
    num_pairs = len(micro.signal.pairs_P2) if isinstance(micro.signal, PairTensors) else 0
    counts = int(micro.mask_NT.sum()), len(micro.mask_NT), num_pairs
    clip = result.metrics.get("clip_share")
    return result.loss / loss.normalizer(*counts), None if clip is None else float(clip[0] / clip[1])


def sequence_micro(
    trainer: Any, ids_NL: Tensor, attention_NL: Tensor, mask_NL: Tensor, signal: SignalTensors
) -> MicroBatch[Any]:
    """A micro-batch over all tokens but the first, of which the mask picks the completions'."""
    reference = getattr(trainer, "ref_model", None)
    logprobs_NT = logprobs(trainer.model, ids_NL, attention_NL)
    with torch.no_grad():
        reference_NT = None if reference is None else logprobs(reference, ids_NL, attention_NL)
    return MicroBatch(logprobs_NT, mask_NL[:, 1:].float(), reference_NT, signal)


def show(row: Comparison) -> str:
    """A line of the table."""
    values = ["–" if value != value else f"{value:.6f}" for value in row.values]
    value_difference = "–" if "–" in values else f"{row.value_difference:.1e}"
    clipped = "" if row.clip_share is None else f"{row.clip_share:.2f}"
    verdict = ("equal" if row.agrees else "differs") if row.is_as_expected else "NOT AS EXPECTED"
    cells = [row.loss, row.setting, *values, value_difference, f"{row.gradient_difference:.1e}", clipped, verdict]
    return " | ".join(["", *cells, row.note, ""]).strip()
