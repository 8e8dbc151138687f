"""Log-probs of given tokens from hidden states, without ever holding all logits.

For a vocabulary of 150,000 the float32 logits of 16,384 tokens take 9.8 GB, and a naive log-softmax holds several
such matrices. Here the output head runs chunk by chunk, and each chunk's logits are computed again in the backward
pass instead of being kept.

Legend: M tokens, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def chunked_logprobs(
    hidden_MD: Tensor,
    head: Callable[[Tensor], Tensor],
    targets_M: Tensor,
    temperature: float,
    chunk_bytes: int,
    vocab_size: int,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """log softmax(head(hidden) / temperature) at the targets, [M], and the entropies of these distributions, [M],
    detached (zeros without `with_entropy`); both float32, whatever the head's dtype, in nats.

    head: [m, D] -> [m, V] logits, called once per chunk and once more per chunk in the backward pass. If it calls a
    module, the module's hooks (ZeRO-3 gathers weights in them) run each time. vocab_size: V. chunk_bytes: size limit of
    the float32 logits of one chunk; at its peak a chunk holds three to four times that. When all M fit into one chunk,
    its log-softmax is kept for the backward pass and nothing is computed twice. Not included: summing the chunks'
    gradients of the head's weight in more than the weight's own precision.
    """

    def chunk(hidden_mD: Tensor, targets_m: Tensor) -> tuple[Tensor, Tensor]:
        return _logprobs(head(hidden_mD), targets_m, temperature, with_entropy)

    num_tokens = len(targets_M)
    num_chunks = math.ceil(num_tokens / max(1, chunk_bytes // (4 * vocab_size)))
    if num_chunks <= 1:
        return chunk(hidden_MD, targets_M)
    size = math.ceil(num_tokens / num_chunks)
    parts = [
        checkpoint(chunk, hidden_mD, targets_m, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else chunk(hidden_mD, targets_m)
        for hidden_mD, targets_m in zip(hidden_MD.split(size), targets_M.split(size), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropy for _, entropy in parts])


def _logprobs(logits_mV: Tensor, targets_m: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
    scaled_mV = logits_mV.float() if temperature == 1.0 else logits_mV.float() / temperature
    del logits_mV
    table_mV = torch.log_softmax(scaled_mV, dim=-1)
    del scaled_mV
    logprobs_m = table_mV.gather(1, targets_m[:, None]).squeeze(1)
    # Comes last, because a checkpoint's recomputation stops as soon as it has what the backward pass needs.
    with torch.no_grad():
        entropy_m = -(table_mV.exp().mul_(table_mV)).sum(-1) if with_entropy else torch.zeros_like(logprobs_m)
    return logprobs_m, entropy_m
