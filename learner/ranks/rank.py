"""One learner rank: a plain class around a model under ZeRO, the same in one process and as one of many.

Every rank receives its own shard of the batch. The loss is divided once by a number of the whole batch, so the result
does not depend on how many ranks or micro-batches there are.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volley.learner.compute.memory import peak_memory_bytes, trim_heap
from volley.learner.compute.model import PolicyModel, load_policy
from volley.learner.compute.reference import FrozenCopy
from volley.learner.ranks.metrics import Metrics, Sums
from volley.learner.ranks.passes import Pass, Passes
from volley.learner.ranks.spec import RankPlace, RankSpec
from volley.learner.ranks.weights import WeightSender, named_weights, state_dict
from volley.learner.ranks.zero import ZeroEngine, start_process_group
from volley.learner.signals.batch import Prepared, Shard, Update
from volley.learner.signals.rows import Floats, PlannedRows

TRIM_EVERY = 8
"""Steps between returning freed host memory to the system on CPUs."""


class LearnerRank:
    """One rank of the learner.

    step: optimizer steps done.
    """

    def __init__(self, spec: RankSpec, place: RankPlace | None = None) -> None:
        place = place or RankPlace()
        start_process_group(place)
        self.step = 0
        self._spec = spec
        self._loss = spec.loss
        self._place = place
        torch.manual_seed(spec.seed)
        model = load_policy(spec.model_dir, spec.config, spec.trust_remote_code, spec.loss.critic_lr > 0)
        self._reference: FrozenCopy | None = None
        if spec.loss.needs_reference and not spec.records_reference:
            self._reference = FrozenCopy(model, spec.temperature)
        self._zero = ZeroEngine(model, spec.config, spec.loss.critic_lr)
        if self._reference is not None:
            self._reference.to(self._zero.device)
        pad_id = model.causal_lm.config.pad_token_id or 0
        self._passes = Passes(self._zero, self._reference, spec.temperature, pad_id)
        self._sender = WeightSender(self._zero, place.rank, place.own_address)

    def update(self, shard: Shard) -> Update:
        """One optimizer step on a batch, of which this rank has `shard`. Raises `FloatingPointError` when loss or
        gradient is not finite; the weights in memory must then not be used."""
        torch.manual_seed(self._spec.seed + self.step)
        lr = self._spec.config.rate_at(self.step, self._spec.total_steps)
        if not shard.counts.completions:
            # No completion could be scored. The run has counted them, and the step changes nothing.
            self.step += 1
            return Update({"loss": math.nan, "grad_norm": 0.0, "lr": lr, **shard.metrics})
        prepared, prepared_metrics = shard.signal.prepare(self._passes, shard.work, shard.auxiliary)
        sums, normalizer = Sums(), self._normalizer(shard)
        for each in self._passes.over(shard.work):
            self._micro_step(shard, each, prepared, normalizer, sums)
        sums.reduce(self._place.num_ranks)
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
                "padding_share": shard.padding_share,
                "peak_memory_bytes": peak_memory_bytes(),
                **prepared_metrics,
                **sums.means(),
                **shard.metrics,
            }
        )

    def evaluate(self, shard: Shard) -> dict[str, float]:
        """Loss and metrics of held-out data; nothing is learned. All ranks call it together."""
        prepared, _ = shard.signal.prepare(self._passes, shard.work, shard.auxiliary)
        sums, normalizer = Sums(), self._normalizer(shard)
        with torch.no_grad():
            for each in self._passes.over(shard.work):
                logprobs_M, _, values_M = self._passes.forward(each.data)
                if not each.is_empty:
                    result = self._loss.loss_sum(
                        self._passes.micro_batch(shard.work, each, prepared, logprobs_M, values_M)
                    )
                    sums.add(float(result.loss) / normalizer, result.metrics)
        sums.reduce(self._place.num_ranks)
        return {"loss": sums.loss, **sums.means(), **shard.metrics}

    def logprobs(self, planned: PlannedRows, temperature: float | None = None) -> Floats:
        """[M], log-probs of this rank's trained tokens under the policy. temperature: by default that of the sampling
        distribution. All ranks call it together."""
        return self._passes.policy(planned, temperature)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `volley.learner.ranks.weights`."""
        return named_weights(self._zero)

    def transfer(self, method: str, *arguments: Any) -> Any:
        """What a push asks of this rank: a method of `volley.learner.ranks.weights.WeightSender`."""
        return getattr(self._sender, method)(*arguments)

    def refresh_reference(self) -> None:
        """Make the current policy the reference."""
        assert self._reference is not None
        self._reference.refresh(self.named_weights())

    def save(self, directory: Path) -> None:
        """Write this rank's state (weights, optimizer, reference); all ranks call it together."""
        self._zero.save(directory)
        if self._reference is not None and self._place.rank == 0:
            from safetensors.torch import save_file

            save_file(self._reference.state(), directory / "reference.safetensors")

    def load(self, directory: Path, step: int) -> None:
        """Restore what `save` wrote after `step`."""
        self._zero.load(directory)
        self.step = step
        if self._reference is not None:
            from safetensors.torch import load_file

            self._reference.restore(load_file(directory / "reference.safetensors"))

    def export(self, directory: Path, tokenizer: Any) -> None:
        """Write a Hugging Face checkpoint (weights in the learner's dtype) that transformers and vLLM load."""
        tensors = state_dict(self._zero)
        if self._place.rank == 0:
            model = self._zero.module
            assert isinstance(model, PolicyModel)
            model.causal_lm.save_pretrained(directory, state_dict=tensors)
            tokenizer.save_pretrained(directory)

    def close(self) -> None:
        self._sender.close()
        self._zero.close()

    def _normalizer(self, shard: Shard) -> float:
        return self._loss.normalizer(shard.counts.tokens, shard.counts.completions, shard.counts.pairs)

    def _micro_step(self, shard: Shard, each: Pass, prepared: Prepared, normalizer: float, sums: Sums) -> None:
        """Forward and backward of one micro-batch. An empty one runs with weight 0, because all ranks must take part in
        ZeRO's collectives."""
        logprobs_M, entropy_M, values_M = self._passes.forward(each.data)
        if each.is_empty:
            self._zero.backward((logprobs_M.sum() + values_M.sum()) * 0.0, each.is_last)
            return
        micro = self._passes.micro_batch(shard.work, each, prepared, logprobs_M, values_M)
        result = self._loss.loss_sum(micro)
        # DeepSpeed averages over ranks, and the normalizer counts all of them.
        self._zero.backward(result.loss * (self._place.num_ranks / normalizer), each.is_last)
        sums.add(float(result.loss.detach()) / normalizer, result.metrics)
        with torch.no_grad():
            metrics: Metrics = {"entropy": (entropy_M.sum(), micro.mask_NT.sum())}
            metrics |= micro.signal.metrics(micro.logprobs_NT, micro.mask_NT, each.data.fresh_N)
        sums.add(0.0, metrics)
