"""One learner rank: a plain class around a model under ZeRO, the same in one process and as one of many.

Every rank is handed the whole batch and works on its share of it; the loss is divided once by a number of the whole
batch, so the result does not depend on how many ranks or micro-batches there are.
"""

import math
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volley.learner.compute.memory import peak_memory_bytes, trim_heap
from volley.learner.compute.model import PolicyModel, load_policy
from volley.learner.compute.packing import Collated, collate, padding_share, plan, plan_units
from volley.learner.compute.reference import FrozenCopy, Reference, record
from volley.learner.config import LearnerConfig
from volley.learner.losses.common import Loss, MicroBatch
from volley.learner.losses.policy.ppo import Ppo
from volley.learner.ranks.observe import Sums, observed
from volley.learner.ranks.weights import WeightSender, named_weights, state_dict
from volley.learner.ranks.zero import ZeroEngine, start_process_group
from volley.learner.signals.batch import Advantages, Batch, Labels, Pairs, Rewards, Row, Targets, Update
from volley.learner.signals.critic import critic_of, with_targets

TRIM_EVERY = 8
"""Steps between returning freed host memory to the system on CPUs."""


class LearnerRank:
    """temperature: of the sampling distribution, by which logits are divided. total_steps: for the schedule.
    address, port: where the ranks meet, on rank 0's machine; listener: there, rank 0's bound socket. own_address: of
    this machine, for sending weights. records_reference: the caller will say `record_reference` before the first
    update, so no second model is loaded. step: optimizer steps done."""

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
        records_reference: bool = False,
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
        model = load_policy(model_dir, config, trust_remote_code, isinstance(loss, Ppo))
        self._pad_id = model.causal_lm.config.pad_token_id or 0
        self._reference: Reference | None = None
        if loss.needs_reference and not records_reference:
            self._reference = FrozenCopy(model, temperature)
        self._zero = ZeroEngine(model, config, loss.value_lr if isinstance(loss, Ppo) else 0.0)
        if isinstance(self._reference, FrozenCopy):
            self._reference.to(self._zero.device)
        self._sender = WeightSender(self._zero, rank, own_address)

    def update(self, batch: Batch) -> Update:
        """One optimizer step on `batch`. Raises `FloatingPointError` when loss or gradient is not finite; the weights
        in memory are then not to be used."""
        torch.manual_seed(self._seed + self.step)
        normalizer = self._loss.normalizer(batch.num_completion_tokens, len(batch.rows), batch.num_pairs)
        batch = batch.with_gradient(self._loss)
        lr = self._config.rate_at(self.step, self._total_steps)
        if not batch.rows:
            # Not one completion could be scored; the run has counted them and goes on.
            self.step += 1
            return Update({"loss": math.nan, "grad_norm": 0.0, "lr": lr, **batch.facts})
        batch = self._with_targets(batch)
        lengths = [row.num_tokens for row in batch.rows]
        shares = plan_units(batch.units, lengths, self._config.max_tokens_per_micro_batch, self._num_ranks)
        mine = shares[self._rank]
        sums, baseline = Sums(), self._baseline(batch)
        for i, indices in enumerate(mine):
            self._micro_step(batch, indices, normalizer, baseline, i == len(mine) - 1, sums)
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
                **({"kl_baseline": baseline} if isinstance(batch.signal, Labels) else {}),
                **sums.means(),
                **batch.facts,
            }
        )

    def measure(self, batch: Batch) -> dict[str, float]:
        """Loss and metrics of `batch`, nothing learned; for held-out data. All ranks call it together."""
        normalizer = self._loss.normalizer(batch.num_completion_tokens, len(batch.rows), batch.num_pairs)
        batch, lengths = self._with_targets(batch), [row.num_tokens for row in batch.rows]
        shares = plan_units(batch.units, lengths, self._config.max_tokens_per_micro_batch, self._num_ranks)
        sums, baseline = Sums(), self._baseline(batch)
        with torch.no_grad():
            for indices in shares[self._rank]:
                data, logprobs_M, _, values_M = self._forward(batch, indices)
                if indices:
                    result = self._loss.loss_sum(
                        self._micro_batch(batch, indices, data, logprobs_M, baseline, values_M)
                    )
                    sums.add(float(result.loss) / normalizer, result.metrics)
        sums.reduce(self._num_ranks, self._zero.device)
        return {"loss": sums.loss, **sums.means(), **batch.facts}

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs at temperature 1 of every token but the first, as the engine's `logprobs`; for parity. All ranks
        call it together."""
        return self._logprobs(
            [Row(tuple(ids[:1]), tuple(ids[1:]), (0.0,) * (len(ids) - 1), 0) for ids in sequences], 1.0
        )

    def record_reference(self, rows: Sequence[Row], file: Path) -> None:
        """Make the policy as it is now the reference of `rows`, which must be all that updates will read, and keep
        their log-probs in `file` for the next run. All ranks call it together."""
        self._reference = record(
            rows, file, lambda missing: self._logprobs(missing, self._temperature), self._from_rank_0, self._rank == 0
        )

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `volley.learner.ranks.weights`."""
        return named_weights(self._zero)

    def transfer(self, method: str, *arguments: Any) -> Any:
        """What a push asks of this rank: a method of `volley.learner.ranks.weights.WeightSender`."""
        return getattr(self._sender, method)(*arguments)

    def refresh_reference(self) -> None:
        """Make the current policy the reference."""
        assert isinstance(self._reference, FrozenCopy)
        self._reference.refresh(self.named_weights())

    def save(self, directory: Path) -> None:
        """Write this rank's state (weights, optimizer, reference); all ranks call it together."""
        self._zero.save(directory)
        if isinstance(self._reference, FrozenCopy) and self._rank == 0:
            from safetensors.torch import save_file

            save_file(self._reference.state(), directory / "reference.safetensors")

    def load(self, directory: Path, step: int) -> None:
        """Restore what `save` wrote after `step`."""
        self._zero.load(directory)
        self.step = step
        if isinstance(self._reference, FrozenCopy):
            from safetensors.torch import load_file

            self._reference.restore(load_file(directory / "reference.safetensors"))

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

    def _logprobs(self, rows: Sequence[Row], temperature: float, values: bool = False) -> list[list[float]]:
        """Of the completion tokens of `rows` under the policy, or the values before them; each rank computes a share,
        and all have the result."""
        found: dict[int, list[float]] = {}
        lengths = [row.num_tokens for row in rows]
        for indices in plan(lengths, self._config.max_tokens_per_micro_batch, self._num_ranks)[self._rank]:
            data = collate(rows, indices or [0], [0.0] * len(rows), self._pad_id).to(self._zero.device)
            with torch.no_grad():
                found_M = self._zero.forward(*data.model_inputs, temperature, False, not values)[2 if values else 0]
            parts = found_M.cpu().split([len(rows[i].completion_ids) for i in indices or [0]])
            found |= {i: part.tolist() for i, part in zip(indices, parts, strict=False)}
        if self._num_ranks > 1:
            everyone: list[Any] = [None] * self._num_ranks
            torch.distributed.all_gather_object(everyone, found)
            found = {i: values for each in everyone for i, values in each.items()}
        return [found[i] for i in range(len(rows))]

    def _from_rank_0(self, value: Any) -> Any:
        if self._num_ranks == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _with_targets(self, batch: Batch) -> Batch:
        """For losses with a critic: advantages and returns from the values before the update."""
        if not isinstance(self._loss, Ppo) or not isinstance(batch.signal, Rewards):
            return batch
        return with_targets(batch, self._loss, self._logprobs(batch.rows, self._temperature, values=True))

    def _baseline(self, batch: Batch) -> float:
        """KTO's z: the mean log-ratio of prompts with other prompts' completions, at least 0."""
        if not isinstance(batch.signal, Labels) or not batch.signal.mismatched:
            return 0.0
        rows = batch.signal.mismatched
        policy = self._logprobs(rows, self._temperature)
        total = math.fsum(map(math.fsum, policy)) - math.fsum(map(math.fsum, self._reference_logprobs(rows)))
        return max(0.0, total / len(rows))

    def _reference_logprobs(self, rows: Sequence[Row]) -> list[list[float]]:
        """Of the completion tokens of `rows` under the reference; every rank computes all of them."""
        assert self._reference is not None
        result: list[list[float]] = [[] for _ in rows]
        for indices in plan([row.num_tokens for row in rows], self._config.max_tokens_per_micro_batch)[0]:
            data = collate(rows, indices, [0.0] * len(rows), self._pad_id).to(self._zero.device)
            values_NT = self._reference.logprobs_NT([rows[i] for i in indices], data).cpu()
            for i, values_T in zip(indices, values_NT, strict=True):
                result[i] = values_T[: len(rows[i].completion_ids)].tolist()
        return result

    def _micro_step(
        self, batch: Batch, indices: list[int], normalizer: float, baseline: float, is_last: bool, sums: Sums
    ) -> None:
        """Forward and backward of one micro-batch; an empty one (ranks must keep step) runs a row without weight."""
        data, logprobs_M, entropy_M, values_M = self._forward(batch, indices)
        if not indices:
            self._zero.backward((logprobs_M.sum() + values_M.sum()) * 0.0, is_last)
            return
        micro = self._micro_batch(batch, indices, data, logprobs_M, baseline, values_M)
        result = self._loss.loss_sum(micro)
        # DeepSpeed averages over ranks, and the normalizer counts all of them.
        self._zero.backward(result.loss * (self._num_ranks / normalizer), is_last)
        sums.add(float(result.loss.detach()) / normalizer, result.metrics)
        sums.add(0.0, observed(data, micro, entropy_M, self._loss.signal))

    def _forward(self, batch: Batch, indices: list[int]) -> tuple[Collated, Tensor, Tensor, Tensor]:
        values = batch.signal.values if isinstance(batch.signal, Advantages) else (0.0,) * len(batch.rows)
        data = collate(batch.rows, indices or [0], values, self._pad_id).to(self._zero.device)
        return data, *self._zero.forward(*data.model_inputs, self._temperature)

    def _micro_batch(
        self, batch: Batch, indices: list[int], data: Collated, logprobs_M: Tensor, baseline: float, values_M: Tensor
    ) -> MicroBatch:
        signal, device = batch.signal, self._zero.device
        place = {index: n for n, index in enumerate(indices)}
        pairs = (
            [(place[w], place[loser]) for w, loser in signal.pairs if w in place] if isinstance(signal, Pairs) else []
        )
        labels = [signal.values[i] for i in indices] if isinstance(signal, Labels) else []
        reference_NT = None
        if self._reference is not None:
            reference_NT = self._reference.logprobs_NT([batch.rows[i] for i in indices], data)
        return MicroBatch(
            data.scatter(logprobs_M),
            data.behaviour_NT,
            reference_NT,
            data.mask_NT,
            data.advantages_N,
            torch.tensor(pairs, dtype=torch.int64, device=device).view(-1, 2),
            torch.tensor(labels, dtype=torch.float32, device=device),
            baseline,
            critic_of(signal, indices, data, values_M) if isinstance(signal, Targets) else None,
        )
