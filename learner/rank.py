"""One learner rank: a plain class around a model under ZeRO, the same in one process and as one of many.

Every rank is handed the whole batch and works on its share of it; the loss is divided once by a number of the whole
batch, so the result does not depend on how many ranks or micro-batches there are.
"""

import contextlib
import copy
import ctypes
import math
import resource
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.batch import Advantages, Batch, Row, Update
from learner.config import LearnerConfig
from learner.losses.common import Loss, MicroBatch, kl_estimate
from learner.model import PolicyModel, load_policy
from learner.packing import Collated, collate, padding_share, plan
from learner.weights import WeightSender, named_weights, state_dict
from learner.zero import ZeroEngine, start_process_group
from rollout.config import TransferConfig
from rollout.transport.stream import TensorMeta

TRIM_EVERY = 8
"""Steps between returning freed host memory to the system on CPUs."""


class LearnerRank:
    """temperature: of the sampling distribution, by which logits are divided. total_steps: for the schedule.
    address, port: where the ranks meet, on rank 0's machine; listener: there, rank 0's bound socket. own_address: of
    this machine, for sending weights. step: optimizer steps done."""

    def __init__(
        self,
        config: LearnerConfig,
        loss: Loss,
        model_dir: Path,
        total_steps: int,
        temperature: float,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        port: int = 0,
        trust_remote_code: bool = False,
        address: str = "127.0.0.1",
        own_address: str = "127.0.0.1",
        listener: socket.socket | None = None,
    ) -> None:
        start_process_group(rank, num_ranks, address, port, listener)
        self.step = 0
        self._config = config
        self._loss = loss
        self._total_steps = total_steps
        self._temperature = temperature
        self._seed = seed
        self._rank = rank
        self._num_ranks = num_ranks
        torch.manual_seed(seed)
        model = load_policy(model_dir, config, trust_remote_code)
        self._pad_id = model.causal_lm.config.pad_token_id or 0
        self._reference: PolicyModel | None = None
        if loss.needs_reference:
            self._reference = copy.deepcopy(model).requires_grad_(False).eval()
        self._zero = ZeroEngine(model, config)
        if self._reference is not None:
            self._reference.to(self._zero.device)
        self._sender = WeightSender(self._zero, rank)
        self._own_address = own_address

    def update(self, batch: Batch) -> Update:
        """One optimizer step on `batch`. Raises `FloatingPointError` when loss or gradient is not finite; the weights
        in memory are then not to be used."""
        torch.manual_seed(self._seed + self.step)
        normalizer = self._loss.normalizer(batch.num_completion_tokens, len(batch.rows))
        batch = batch.with_gradient(self._loss)
        lr = learning_rate(self._config, self.step, self._total_steps)
        if not batch.rows:
            # Not one completion could be scored; the run has counted them and goes on.
            self.step += 1
            return Update({"loss": math.nan, "grad_norm": 0.0, "lr": lr})
        lengths = [row.num_tokens for row in batch.rows]
        shares = plan(lengths, self._config.max_tokens_per_micro_batch, self._num_ranks)
        mine = shares[self._rank]
        sums = _Sums()
        for i, indices in enumerate(mine):
            self._micro_step(batch, indices, normalizer, i == len(mine) - 1, sums)
        sums.reduce(self._num_ranks, self._zero.device)
        if not math.isfinite(sums.loss):
            raise FloatingPointError(f"learner: the loss of step {self.step + 1} is {sums.loss}; lower learner.lr")
        grad_norm = self._zero.step(lr)
        if math.isinf(grad_norm):
            raise FloatingPointError(f"learner: the gradient of step {self.step + 1} is infinite; lower learner.lr")
        self.step += 1
        if self.step % TRIM_EVERY == 0 and self._zero.device.type == "cpu":
            trim_heap()
        return Update(
            {
                "loss": sums.loss,
                "grad_norm": grad_norm,
                "lr": lr,
                "padding_share": padding_share(shares, lengths),
                "peak_memory_bytes": peak_memory_bytes(),
                **sums.means(),
            }
        )

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs at temperature 1 of every token but the first, as the engine's `logprobs`; for parity. All ranks
        call it together."""
        rows = [Row(tuple(ids[:1]), tuple(ids[1:]), (0.0,) * (len(ids) - 1), 0) for ids in sequences]
        result: list[list[float]] = [[] for _ in rows]
        for indices in plan([row.num_tokens for row in rows], self._config.max_tokens_per_micro_batch)[0]:
            data = collate(rows, indices, [0.0] * len(rows), self._pad_id).to(self._zero.device)
            with torch.no_grad():
                values, _ = self._zero.forward(*data.model_inputs, 1.0, False)
            for i, part in zip(
                indices, values.cpu().split([len(rows[i].completion_ids) for i in indices]), strict=True
            ):
                result[i] = part.tolist()
        return result

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `learner.weights`."""
        return named_weights(self._zero)

    def weight_metas(self) -> list[TensorMeta]:
        """What a push consists of."""
        return self._sender.metas()

    def open_transfer(self, transport: str) -> tuple[str, int]:
        """See `learner.weights.WeightSender.open`."""
        return self._sender.open(transport, self._own_address)

    def connect_transfer(self, world_size: int, config: TransferConfig) -> None:
        """See `learner.weights.WeightSender.connect`."""
        self._sender.connect(world_size, config)

    def send_weights(self) -> str:
        """See `learner.weights.WeightSender.send`."""
        return self._sender.send()

    def close_transfer(self) -> None:
        """Leave the group of the last push."""
        self._sender.close()

    def refresh_reference(self) -> None:
        """Make the current policy the reference."""
        assert self._reference is not None
        own = dict(self._reference.causal_lm.named_parameters())
        with torch.no_grad():
            for name, tensor in self.named_weights():
                own[name].copy_(tensor)

    def save(self, directory: Path) -> None:
        """Write this rank's state (weights, optimizer, reference); all ranks call it together."""
        self._zero.save(directory)
        if self._reference is not None and self._rank == 0:
            from safetensors.torch import save_file

            tensors = {name: p.detach().cpu() for name, p in self._reference.causal_lm.named_parameters()}
            save_file(tensors, directory / "reference.safetensors")

    def load(self, directory: Path, step: int) -> None:
        """Restore what `save` wrote after `step`."""
        self._zero.load(directory)
        self.step = step
        if self._reference is not None:
            from safetensors.torch import load_file

            self._reference.causal_lm.load_state_dict(load_file(directory / "reference.safetensors"), strict=False)

    def export(self, directory: Path, tokenizer: Any) -> None:
        """Write a Hugging Face checkpoint (weights in the learner's dtype) that transformers and vLLM load."""
        tensors = state_dict(self._zero)
        if self._rank == 0:
            model = self._zero.module
            assert isinstance(model, PolicyModel)
            model.causal_lm.save_pretrained(directory, state_dict=tensors)
            tokenizer.save_pretrained(directory)

    def close(self) -> None:
        self._sender.close()
        self._zero.close()

    def _micro_step(self, batch: Batch, indices: list[int], normalizer: float, is_last: bool, sums: "_Sums") -> None:
        """Forward and backward of one micro-batch; an empty one (ranks must keep step) runs a row without weight."""
        values = batch.signal.values if isinstance(batch.signal, Advantages) else (0.0,) * len(batch.rows)
        data = collate(batch.rows, indices or [0], values, self._pad_id).to(self._zero.device)
        logprobs_M, entropy_M = self._zero.forward(*data.model_inputs, self._temperature)
        micro = self._micro_batch(data, logprobs_M)
        if not indices:
            self._zero.backward(micro.logprobs_NT.sum() * 0.0, is_last)
            return
        result = self._loss.loss_sum(micro)
        # DeepSpeed averages over ranks, and the normalizer counts all of them.
        self._zero.backward(result.loss * (self._num_ranks / normalizer), is_last)
        sums.add(float(result.loss.detach()) / normalizer, result.metrics)
        sums.add(0.0, _observed(data, micro, entropy_M, self._loss.signal))

    def _micro_batch(self, data: Collated, logprobs_M: Tensor) -> MicroBatch:
        reference_NT = None
        if self._reference is not None:
            with torch.no_grad():
                reference_M, _ = self._reference(*data.model_inputs, self._temperature, False)
            reference_NT = data.scatter(reference_M)
        return MicroBatch(data.scatter(logprobs_M), data.behaviour_NT, reference_NT, data.mask_NT, data.advantages_N)


def learning_rate(config: LearnerConfig, step: int, total_steps: int) -> float:
    """The rate of the step after `step` done ones: linear warm-up, then the schedule down to lr * min_lr_share."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    decay = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}[config.schedule]
    return config.lr * (config.min_lr_share + (1.0 - config.min_lr_share) * decay)


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library is glibc. Micro-batches have ever new shapes, so its
    heap fragments: 60 steps of the demo's model grew by 0.9 GB without this and by nothing with it (20 ms a call)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_bytes() -> int:
    """The device's peak, or the process's resident peak on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _observed(data: Collated, micro: MicroBatch, entropy_M: Tensor, signal: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What is worth knowing of every update, whatever the loss: entropy, and for sampled completions how far policy
    and behaviour lie apart (k3 estimate of KL(behaviour || policy); |difference| of log-probs, on fresh samples only,
    where it is numerical noise)."""
    with torch.no_grad():
        mask_NT, num_tokens = micro.mask_NT, micro.mask_NT.sum()
        metrics = {"entropy": (entropy_M.sum(), num_tokens)}
        if signal != "advantages":
            return metrics
        metrics["kl_behaviour"] = (
            (kl_estimate("k3", micro.behaviour_NT, micro.logprobs_NT) * mask_NT).sum(),
            num_tokens,
        )
        fresh_NT = mask_NT * data.fresh_N[:, None]
        if fresh_NT.any():
            gap_NT = (micro.logprobs_NT - micro.behaviour_NT).abs() * fresh_NT
            metrics["logprob_mismatch_mean"] = (gap_NT.sum(), fresh_NT.sum())
            metrics["logprob_mismatch_max"] = (gap_NT.amax(), fresh_NT.new_ones(()))
        return metrics


class _Sums:
    """Sums and counts over micro-batches and ranks; names ending in _max keep the largest value."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._values: dict[str, tuple[float, float]] = {}

    def add(self, loss: float, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.loss += loss
        for name, (value, count) in metrics.items():
            self._merge(name, float(value), float(count))

    def _merge(self, name: str, value: float, count: float) -> None:
        old_value, old_count = self._values.get(name, (0.0, 0.0))
        if name.endswith("_max"):
            self._values[name] = (max(old_value, value), 1.0)
        else:
            self._values[name] = (old_value + value, old_count + count)

    def reduce(self, num_ranks: int, device: torch.device) -> None:
        """Add up over all ranks."""
        if num_ranks == 1:
            return
        everyone: list[Any] = [None] * num_ranks
        torch.distributed.all_gather_object(everyone, (self.loss, self._values))
        self.loss, self._values = 0.0, {}
        for loss, values in everyone:
            self.loss += loss
            for name, (value, count) in values.items():
                self._merge(name, value, count)

    def means(self) -> dict[str, float]:
        return {name: value / count if count else math.nan for name, (value, count) in self._values.items()}
