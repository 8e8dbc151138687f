"""Load weights in checkpoint format into a live vLLM model."""

from collections.abc import Iterable
from typing import Any

import torch


def load_into_model(vllm_config: Any, model: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load checkpoint-format weights into a live vLLM model, layer by layer and in place.

    The CPU backend keeps a packed copy of the output matrix for its GEMM; with tied embeddings the reload leaves that
    copy as it was (measured: log-probs off by up to 0.48), so embeddings are packed again.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    with torch.no_grad(), set_current_vllm_config(vllm_config):
        reload_weights(vllm_config, model, iter(weights), None, True)
        for layer in model.modules():
            if isinstance(layer, VocabParallelEmbedding):
                layer.quant_method.process_weights_after_loading(layer)
