"""Rows to micro-batches: which rows go together (`plan`), and their tensors (`collate`).

Legend: N sequences of a micro-batch, L tokens fed of the longest, T completion tokens of the longest completion,
M completion tokens of all N sequences, in the order of the sequences.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volley.learner.signals.batch import Row

MICRO_BATCH_COST = 128
"""What one more forward and backward pass costs whatever its size, in tokens of padding. About 60 were measured on a
CPU with a tiny model; devices that wait for kernel launches pay more."""


def plan(lengths: Sequence[int], max_tokens: int, num_ranks: int = 1) -> list[list[list[int]]]:
    """Per rank, its micro-batches; per micro-batch, its row indices. Every row appears exactly once.

    lengths: tokens of each row. max_tokens: rows times longest row of a micro-batch at most; a row longer than that
    gets a micro-batch of its own. Every rank gets the same number of micro-batches, because ZeRO's collectives need
    every rank at every pass; where the rows do not suffice, the last one of some ranks is empty. Longest rows come
    first, so that a lack of memory shows at once. Deterministic.

    Rows are sorted by length, dealt out over the ranks like cards, and cut into passes, so that in each pass all ranks
    have about the same length and, but for one, the same number of rows. The cuts minimise exactly what the passes
    take in turn: the padded tokens of the fullest rank plus MICRO_BATCH_COST (dynamic programming, quadratic in the
    rows: 40 ms for 4,096). Tokens are taken for the work; that attention grows with the square of the length is left
    out.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cuts = _best_cuts(np.array([lengths[i] for i in order], dtype=np.int64), max_tokens, num_ranks)
    passes = list(itertools.pairwise(cuts))
    return [[order[start + rank : end : num_ranks] for start, end in passes] for rank in range(num_ranks)]


def plan_units(
    units: Sequence[Sequence[int]], lengths: Sequence[int], max_tokens: int, num_ranks: int = 1
) -> list[list[list[int]]]:
    """As `plan`, for rows that must stay together: `units` of row indices. A unit counts as the largest one of them
    does, which is exact where all are of one size, as best-and-worst pairs are."""
    size = max((len(unit) for unit in units), default=1)
    longest = [max(lengths[i] for i in unit) for unit in units]
    planned = plan(longest, max(1, max_tokens // size), num_ranks)
    return [[[i for unit in batch for i in units[unit]] for batch in rank] for rank in planned]


def padding_share(ranks: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int]) -> float:
    """The share of the plan's tokens that are padding, between 0 and 1."""
    batches = [[lengths[i] for i in batch] for rank in ranks for batch in rank if batch]
    padded = sum(len(batch) * max(batch) for batch in batches)
    return 1.0 - sum(map(sum, batches)) / padded if padded else 0.0


def _best_cuts(lengths: NDArray[np.int64], max_tokens: int, num_ranks: int) -> list[int]:
    """Where to cut rows sorted from long to short: [0, ..., number of rows]."""
    num_rows = len(lengths)
    cost = np.full(num_rows + 1, np.iinfo(np.int64).max)
    cost[0] = 0
    previous = np.zeros(num_rows + 1, dtype=np.int64)
    for start in range(num_rows):
        longest = max(1, int(lengths[start]))
        most_rows = max(1, max_tokens // longest) * num_ranks
        ends = np.arange(start + 1, min(start + most_rows, num_rows) + 1)
        rows_per_rank = (ends - start + num_ranks - 1) // num_ranks
        candidate = cost[start] + rows_per_rank * longest + MICRO_BATCH_COST
        better = ends[candidate <= cost[ends]]  # Of equals the last: earlier passes are full.
        cost[better] = candidate[better - start - 1]
        previous[better] = start
    cuts = [num_rows]
    while cuts[-1] > 0:
        cuts.append(int(previous[cuts[-1]]))
    return cuts[::-1]


@dataclass(frozen=True, slots=True)
class Collated:
    """The tensors of one micro-batch.

    input_ids_NL: [prompt, completion, padding], without each row's last token, whose hidden state predicts nothing.
    attention_mask_NL: 1 for real tokens; None when nothing is padded, which lets attention take its fastest path.
    positions_M: places in the flattened [N * L] of the tokens *before* the completion tokens, whose hidden states
    predict them. targets_M: the completion tokens. slots_M: their places in the flattened [N * T].
    behaviour_NT: log-probs of the sampling distribution, 0 at padding. mask_NT: 1 for completion tokens.
    advantages_N. fresh_N: 1 for rows sampled under the weights of this batch (staleness 0).
    Token ids and places are int64, the rest float32.
    """

    input_ids_NL: Tensor
    attention_mask_NL: Tensor | None
    positions_M: Tensor
    targets_M: Tensor
    slots_M: Tensor
    behaviour_NT: Tensor
    mask_NT: Tensor
    advantages_N: Tensor
    fresh_N: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The first arguments of `PolicyModel.forward`."""
        return self.input_ids_NL, self.attention_mask_NL, self.positions_M, self.targets_M

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


def collate(rows: Sequence[Row], indices: Sequence[int], advantages: Sequence[float], pad_id: int) -> Collated:
    """The micro-batch of `rows[i] for i in indices`. advantages: one per row of `rows`. Prompts must not be empty,
    because the first completion token is predicted from the prompt's last."""
    chosen = [rows[i] for i in indices]
    assert all(row.prompt_ids for row in chosen), "a row has an empty prompt"
    prompt_lengths_N = torch.tensor([len(row.prompt_ids) for row in chosen])
    completion_lengths_N = torch.tensor([len(row.completion_ids) for row in chosen])

    fed = [(row.prompt_ids + row.completion_ids)[: max(1, row.num_tokens - 1)] for row in chosen]
    input_ids_NL = _padded(fed, pad_id, torch.int64)
    num_fed_N = torch.tensor([len(ids) for ids in fed])
    attention_NL = torch.arange(input_ids_NL.shape[1]) < num_fed_N[:, None]

    behaviour_NT = _padded([row.behaviour_logprobs for row in chosen], 0.0, torch.float32)
    steps_T = torch.arange(behaviour_NT.shape[1])
    present_NT = steps_T < completion_lengths_N[:, None]
    row_starts_N = torch.arange(len(chosen)) * input_ids_NL.shape[1]
    positions_NT = (row_starts_N + prompt_lengths_N - 1)[:, None] + steps_T
    return Collated(
        input_ids_NL=input_ids_NL,
        attention_mask_NL=None if bool(attention_NL.all()) else attention_NL.long(),
        positions_M=positions_NT[present_NT],
        targets_M=torch.tensor([token for row in chosen for token in row.completion_ids], dtype=torch.int64),
        slots_M=present_NT.flatten().nonzero().flatten(),
        behaviour_NT=behaviour_NT,
        mask_NT=present_NT.float(),
        advantages_N=torch.tensor([advantages[i] for i in indices], dtype=torch.float32),
        fresh_N=torch.tensor([row.staleness == 0 for row in chosen], dtype=torch.float32),
    )


def _padded(rows: Sequence[Sequence[float]], padding: float, dtype: torch.dtype) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([list(row) + [padding] * (longest - len(row)) for row in rows], dtype=dtype)
