"""The frozen reference policy as a second copy of the model. Its recorded form is in `recorded`."""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from volley.learner.compute.collate import Collated
from volley.learner.compute.model import PolicyModel
from volley.rollout.errors import CheckpointError


class FrozenCopy:
    """A copy of `model` as it is now; temperature: of the sampling distribution."""

    def __init__(self, model: PolicyModel, temperature: float) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False).eval()
        self._temperature = temperature

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    def logprobs_M(self, data: Collated) -> Tensor:
        """Log-probs of the trained tokens of a micro-batch, without gradient."""
        with torch.no_grad():
            values_M: Tensor = self._model(*data.model_inputs, self._temperature, False)[0]
        return values_M

    def refresh(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Become the policy whose weights these are."""
        own = dict(self._model.causal_lm.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                own[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: parameter.detach().cpu() for name, parameter in self._model.causal_lm.named_parameters()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `state` returned. Raises `CheckpointError` for the weights of another model."""
        own = {name: parameter.shape for name, parameter in self._model.causal_lm.named_parameters()}
        if own != {name: tensor.shape for name, tensor in tensors.items()}:
            raise CheckpointError(
                "the checkpoint's reference model has other weights than the model of the recipe; resume with the "
                "model that the run was started with."
            )
        self.refresh(iter(tensors.items()))
