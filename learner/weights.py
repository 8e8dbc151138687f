"""The policy's weights as a stream of named tensors, in the names of a Hugging Face checkpoint.

Tied weights come once, under the name of the input embedding, as checkpoints have them. Under ZeRO-3 one module's
parameters are gathered at a time, never the whole model.
"""

from collections.abc import Iterator

from torch import Tensor

from learner.model import PolicyModel
from learner.zero import ZeroEngine

PREFIX = "causal_lm."


def named_weights(zero: ZeroEngine) -> Iterator[tuple[str, Tensor]]:
    """Each tensor is valid until the next one is asked for, and must be copied by whoever keeps it."""
    model = zero.module
    assert isinstance(model, PolicyModel)
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False)]
        fresh = [(name, parameter) for name, parameter in own if id(parameter) not in seen]
        seen.update(id(parameter) for _, parameter in fresh)
        if not fresh:
            continue
        with zero.gathered([parameter for _, parameter in fresh]):
            for name, parameter in fresh:
                yield f"{module_name}.{name}".removeprefix(PREFIX), parameter.detach()


def state_dict(zero: ZeroEngine) -> dict[str, Tensor]:
    """A copy of all weights in host memory, for export."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in named_weights(zero)}
