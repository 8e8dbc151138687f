"""The policy: a Hugging Face causal language model whose forward pass returns log-probs instead of logits.

The transformer body runs once per micro-batch; the output head is applied to the completion tokens only, in chunks
(`volley.learner.compute.logprobs`), so the [tokens, vocab] float32 matrix never exists.

Legend: N sequences, L tokens of the longest, M completion tokens of the micro-batch, D hidden size.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from volley.learner.compute.logprobs import chunked_logprobs
from volley.learner.config import LearnerConfig
from volley.rollout.errors import ModelError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

SHORT_TOKENS = 256
"""Sequences up to which a CPU computes attention without the fused kernel: 28 % of an update of the demo."""


def is_slow_in_bf16() -> bool:
    """No GPU, and no AVX-512, without which a matrix product in bf16 takes tens of times as long as in fp32."""
    return not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


class ValueHead(nn.Linear):
    """PPO's critic: one number from the last hidden state, [M, D] -> [M], float32 whatever its weights' dtype. Begins
    with zeros, so all values are 0 and no random number is drawn. Not part of the language model: it is trained and
    kept in checkpoints, but neither pushed to the engines nor exported."""

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__(hidden_size, 1, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_MD: Tensor) -> Tensor:
        return nn.functional.linear(hidden_MD.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class PolicyModel(nn.Module):
    """Wraps a causal language model. `forward` is the only door, so that ZeRO's hooks see every use of a weight.
    with_values: give it a value head on the shared trunk, too."""

    def __init__(self, causal_lm: Any, chunk_bytes: int, with_values: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.value_head = (
            ValueHead(causal_lm.config.get_text_config().hidden_size, causal_lm.dtype) if with_values else None
        )
        self._chunk_bytes = chunk_bytes
        self._attention = "sdpa"
        config = causal_lm.config.get_text_config()
        self._vocab_size = config.vocab_size
        self._softcap = getattr(config, "final_logit_softcapping", None)
        unsupported = [
            name for name in ("logit_scale", "logits_scaling") if getattr(config, name, None) not in (None, 1)
        ]
        if unsupported:
            raise ModelError(
                f"model: {type(causal_lm).__name__} scales its logits ({unsupported[0]}), which the learner does not "
                "reproduce yet; use a model without it."
            )

    def forward(
        self,
        input_ids_NL: Tensor,
        attention_mask_NL: Tensor | None,
        positions_M: Tensor,
        targets_M: Tensor,
        temperature: float,
        with_entropy: bool = True,
        with_logprobs: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs [M] (float32, with gradient) and entropies [M] (detached) of the tokens `targets_M`, and the values
        [M] (float32, with gradient) of the states before them, [0] without a value head.

        positions_M: places in the flattened [N * L] of the tokens *before* the targets. attention_mask_NL: 1 for real
        tokens; None when nothing is padded. with_logprobs: False leaves the output head out, for values alone.
        """
        self._choose_attention(input_ids_NL)
        hidden_NLD = self.causal_lm.base_model(
            input_ids=input_ids_NL, attention_mask=attention_mask_NL, use_cache=False
        ).last_hidden_state
        hidden_MD = hidden_NLD.flatten(0, 1)[positions_M]
        values_M = hidden_MD.new_zeros(0) if self.value_head is None else self.value_head(hidden_MD)
        if not with_logprobs:
            return values_M.new_zeros(0), values_M.new_zeros(0), values_M
        logprobs_M, entropy_M = chunked_logprobs(
            hidden_MD, self._head, targets_M, temperature, self._chunk_bytes, self._vocab_size, with_entropy
        )
        return logprobs_M, entropy_M, values_M

    def _choose_attention(self, input_ids_NL: Tensor) -> None:
        """On CPUs the fused kernel's backward pass takes longer than plain matrix products while those are small."""
        is_short = input_ids_NL.device.type == "cpu" and input_ids_NL.shape[1] <= SHORT_TOKENS
        attention = "eager" if is_short else "sdpa"
        if attention != self._attention:
            self.causal_lm.set_attn_implementation(attention)
            self._attention = attention

    def _head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.causal_lm.get_output_embeddings()(hidden)
        return self._softcap * torch.tanh(logits / self._softcap) if self._softcap else logits


def load_policy(
    path: Path, config: LearnerConfig, trust_remote_code: bool = False, with_values: bool = False
) -> PolicyModel:
    """Load the model of a directory in the learner's dtype; with_values: beside a new value head."""
    from transformers import AutoModelForCausalLM

    try:
        causal_lm = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[config.dtype],
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model: '{path}' could not be loaded ({reason}).") from error
    if config.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    causal_lm.train()
    return PolicyModel(causal_lm, config.logprob_chunk_bytes, with_values)
