"""The rows of a micro-batch as tensors.

The model reads rows, losses read completions: the trained tokens of all rows of a completion are concatenated into
one row of [N, T], without prompts, observations and repeated context.

Legend: N completions and R rows of a micro-batch, L tokens fed of the longest row, T trained tokens of the longest
completion, M trained tokens of all completions in the order of the rows.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volley.learner.signals.rows import Rows


@dataclass(frozen=True, slots=True)
class Collated:
    """The tensors of one micro-batch. Token ids and places are int64, the rest is float32."""

    input_ids_RL: Tensor
    """Tokens and padding, without each row's last token, whose hidden state predicts nothing."""
    attention_mask_RL: Tensor | None
    """1 for real tokens; None when nothing is padded, which lets attention take its fastest path."""
    positions_M: Tensor
    """Places in the flattened [R * L] of the tokens *before* the trained ones, whose hidden states predict them."""
    targets_M: Tensor
    """The trained tokens."""
    slots_M: Tensor
    """Their places in the flattened [N * T]."""
    behaviour_NT: Tensor
    """Log-probs of the sampling distribution, 0 at padding."""
    mask_NT: Tensor
    """1 for trained tokens, 0 at padding."""
    fresh_N: Tensor
    """1 for completions sampled under the weights of the update (staleness 0)."""

    @property
    def model_inputs(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The first arguments of `PolicyModel.forward`."""
        return self.input_ids_RL, self.attention_mask_RL, self.positions_M, self.targets_M

    def scatter(self, values_M: Tensor) -> Tensor:
        """[M] to [N, T], zeros at padding; gradients flow back."""
        flat = values_M.new_zeros(self.mask_NT.numel())
        return flat.index_copy(0, self.slots_M, values_M).view_as(self.mask_NT)

    def to(self, device: torch.device | str) -> "Collated":
        moved: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            tensor = getattr(self, field.name)
            moved[field.name] = None if tensor is None else tensor.to(device)
        return Collated(**moved)


def collate(rows: Rows, pad_id: int) -> Collated:
    """The tensors of all of `rows`. The first token of a row cannot be trained, because nothing predicts it."""
    lengths_R, num_rows = rows.lengths, rows.num_rows
    row_of = np.repeat(np.arange(num_rows), lengths_R)
    place_of = np.arange(len(rows.token_ids)) - np.repeat(rows.row_starts[:-1], lengths_R)
    trained = np.flatnonzero(rows.trained)
    assert (place_of[trained] > 0).all(), "a row's first token is trained, but nothing predicts it: an empty prompt?"

    fed_R = np.maximum(1, lengths_R - 1)
    longest = int(fed_R.max(initial=1))
    is_fed = place_of < fed_R[row_of]
    ids_RL = np.full((num_rows, longest), pad_id, dtype=np.int64)
    ids_RL[row_of[is_fed], place_of[is_fed]] = rows.token_ids[is_fed]
    is_real_RL = np.arange(longest) < fed_R[:, None]

    trained_N = rows.trained_per_completion
    num_steps = int(trained_N.max(initial=0))
    mask_NT = np.arange(num_steps) < trained_N[:, None]
    behaviour_NT = np.zeros(mask_NT.shape, dtype=np.float32)
    behaviour_NT[mask_NT] = rows.logprobs[trained]
    return Collated(
        input_ids_RL=torch.from_numpy(ids_RL),
        attention_mask_RL=None if is_real_RL.all() else torch.from_numpy(is_real_RL).long(),
        positions_M=torch.from_numpy(row_of[trained] * longest + place_of[trained] - 1),
        targets_M=torch.from_numpy(rows.token_ids[trained].astype(np.int64)),
        slots_M=torch.from_numpy(np.flatnonzero(mask_NT)),
        behaviour_NT=torch.from_numpy(behaviour_NT),
        mask_NT=torch.from_numpy(mask_NT).float(),
        fresh_N=torch.from_numpy(rows.staleness == 0).float(),
    )
