"""The policy: a Hugging Face causal language model whose forward pass returns log-probs instead of logits.

The transformer body runs once per micro-batch. The output head is applied to the trained tokens only, in chunks
(`volley.learner.compute.logprobs`), so the [tokens, vocab] float32 matrix never exists.

Legend: R rows, L tokens of the longest, M trained tokens of the micro-batch, D hidden size.
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
"""Up to this row length a CPU computes attention without the fused kernel, which saves 28 % of an update of the
demo."""


def is_slow_in_bf16() -> bool:
    """Whether there is neither a GPU nor AVX-512, so that a matrix product in bf16 takes tens of times as long as in
    fp32."""
    return not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


class ValueHead(nn.Linear):
    """A critic: one number from the last hidden state, [M, D] -> [M], in float32 whatever its weights' dtype.

    It starts with zeros, so all values are 0 and no random number is drawn. It is not part of the language model: it is
    trained and saved in checkpoints, but neither pushed to the engines nor exported.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__(hidden_size, 1, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_MD: Tensor) -> Tensor:
        return nn.functional.linear(hidden_MD.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class PolicyModel(nn.Module):
    """A causal language model. All computation goes through `forward`, so that ZeRO's hooks see every use of a
    weight."""

    def __init__(self, causal_lm: Any, chunk_bytes: int, with_values: bool = False) -> None:
        """with_values: add a value head on the shared trunk."""
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
        input_ids_RL: Tensor,
        attention_mask_RL: Tensor | None,
        positions_M: Tensor,
        targets_M: Tensor,
        temperature: float,
        with_entropy: bool = True,
        with_logprobs: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs [M] (float32, with gradient) and entropies [M] (detached) of the tokens `targets_M`, and the values
        [M] (float32, with gradient) of the states before them, [0] without a value head.

        positions_M: places in the flattened [R * L] of the tokens *before* the targets. attention_mask_RL: 1 for real
        tokens; None when nothing is padded. with_logprobs: False skips the output head, for values alone.
        """
        self._choose_attention(input_ids_RL)
        hidden_RLD = self.causal_lm.base_model(
            input_ids=input_ids_RL, attention_mask=attention_mask_RL, use_cache=False
        ).last_hidden_state
        hidden_MD = hidden_RLD.flatten(0, 1)[positions_M]
        values_M = hidden_MD.new_zeros(0) if self.value_head is None else self.value_head(hidden_MD)
        if not with_logprobs:
            return values_M.new_zeros(0), values_M.new_zeros(0), values_M
        logprobs_M, entropy_M = chunked_logprobs(
            hidden_MD, self._head, targets_M, temperature, self._chunk_bytes, self._vocab_size, with_entropy
        )
        return logprobs_M, entropy_M, values_M

    def _choose_attention(self, input_ids_RL: Tensor) -> None:
        """On CPUs the fused kernel's backward pass takes longer than plain matrix products, as long as they are
        small."""
        is_short = input_ids_RL.device.type == "cpu" and input_ids_RL.shape[1] <= SHORT_TOKENS
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
    """Load the model of a directory in the learner's dtype, without dropout. with_values: with a new value head."""
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
    disable_dropout(causal_lm)
    causal_lm.train()
    return PolicyModel(causal_lm, config.logprob_chunk_bytes, with_values)


def disable_dropout(model: nn.Module) -> None:
    """Set all dropout probabilities of the modules to 0; the configuration, which is exported, keeps them.

    The log-probs of the learner are compared with those of the engine and of the reference, which have no dropout.
    Modules keep a probability as `nn.Dropout.p` or as a float attribute such as `attention_dropout`.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
