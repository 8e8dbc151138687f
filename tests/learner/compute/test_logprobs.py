"""Chunked log-probs against a naive log-softmax in float64, and what they hold in memory."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volley.learner.compute.logprobs import chunked_logprobs

M, D, V = 37, 8, 101
ONE_CHUNK = 1 << 30


def rows_of(num_rows: int) -> int:
    """chunk_bytes for chunks of `num_rows` tokens."""
    return 4 * V * num_rows


def problem(dtype: torch.dtype = torch.float32, num_tokens: int = M) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Hidden states, head, targets, and weights of the log-probs in a loss."""
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, D).to(dtype).requires_grad_()
    head = nn.Linear(D, V).to(dtype)
    return hidden, head, torch.randint(V, (num_tokens,)), torch.randn(num_tokens)


def naive(hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies in float64, token by token from the definition."""
    weight, bias = head.weight.double(), head.bias.double()
    logprobs, entropies = [], []
    for state, target in zip(hidden.double(), targets.tolist(), strict=True):
        logits = (weight @ state + bias) / temperature
        probabilities = logits.exp() / logits.exp().sum()
        logprobs.append(probabilities[target].log())
        entropies.append(-(probabilities * probabilities.log()).sum())
    return torch.stack(logprobs), torch.stack(entropies)


def gradients(logprobs: Tensor, weights: Tensor, hidden: Tensor, head: nn.Linear) -> list[Tensor]:
    return list(torch.autograd.grad((logprobs * weights).sum(), [hidden, head.weight, head.bias]))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.8])
@pytest.mark.parametrize("chunk_bytes", [ONE_CHUNK, rows_of(10), rows_of(1), 1])
def test_values_and_gradients_are_those_of_the_definition(temperature, chunk_bytes):
    hidden, head, targets, weights = problem()
    logprobs, entropies = chunked_logprobs(hidden, head, targets, temperature, chunk_bytes, V)
    expected, expected_entropies = naive(hidden, head, targets, temperature)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=1e-5, atol=1e-5)
    assert not entropies.requires_grad
    ours = gradients(logprobs, weights, hidden, head)
    for got, wanted in zip(ours, gradients(expected, weights.double(), hidden, head), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(num_tokens=st.integers(0, 40), num_rows=st.integers(1, 45))
def test_chunks_do_not_change_the_result(num_tokens, num_rows):
    hidden, head, targets, weights = problem(num_tokens=num_tokens)
    whole = chunked_logprobs(hidden, head, targets, 0.9, ONE_CHUNK, V)
    parts = chunked_logprobs(hidden, head, targets, 0.9, rows_of(num_rows), V)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(
        gradients(parts[0], weights, hidden, head), gradients(whole[0], weights, hidden, head), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [ONE_CHUNK, rows_of(10)])
def test_a_bf16_head_is_within_its_precision(chunk_bytes):
    hidden, head, targets, weights = problem(torch.bfloat16)
    logprobs, entropies = chunked_logprobs(hidden, head, targets, 1.0, chunk_bytes, V)
    assert logprobs.dtype == entropies.dtype == torch.float32
    expected, expected_entropies = naive(hidden, head, targets, 1.0)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=0, atol=0.02)
    exact_head = copy.deepcopy(head).double()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact, _ = naive(exact_hidden, exact_head, targets, 1.0)
    wanted = gradients(exact, weights.double(), exact_hidden, exact_head)
    for got, reference in zip(gradients(logprobs, weights, hidden, head), wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("chunk_bytes", [ONE_CHUNK, rows_of(10)])
def test_without_gradients_and_without_entropy(chunk_bytes):
    hidden, head, targets, _ = problem()
    expected, _ = chunked_logprobs(hidden, head, targets, 1.3, chunk_bytes, V)
    with torch.no_grad():
        logprobs, entropies = chunked_logprobs(hidden, head, targets, 1.3, chunk_bytes, V, with_entropy=False)
    assert not logprobs.requires_grad
    assert torch.equal(logprobs, expected)
    assert torch.equal(entropies, torch.zeros(M))


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_large_logits_stay_finite(scale):
    hidden, head, targets, weights = problem()
    logprobs, entropies = chunked_logprobs(hidden * scale, head, targets, 1.0, rows_of(10), V)
    found = [logprobs, entropies, *gradients(logprobs, weights, hidden, head)]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, in elements."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.num_elements = max([self.num_elements, *sizes])
        return result


@pytest.mark.parametrize(("num_rows", "expected_rows"), [(10, 10), (9, 8), (1, 1), (M, M)])
def test_no_tensor_is_larger_than_a_chunk(num_rows, expected_rows):
    """Forward and backward; 37 tokens in chunks of at most 9 make five of 8 or fewer."""
    hidden, head, targets, weights = problem()
    with Largest() as largest:
        logprobs, _ = chunked_logprobs(hidden, head, targets, 0.8, rows_of(num_rows), V)
        gradients(logprobs, weights, hidden, head)
    head_elements = V * D
    assert largest.num_elements == max(expected_rows * V, head_elements)


@pytest.mark.parametrize(
    ("chunk_bytes", "grad", "calls"), [(rows_of(M), True, 1), (rows_of(10), True, 8), (rows_of(10), False, 4)]
)
def test_the_head_runs_as_a_module_and_no_more_often_than_needed(chunk_bytes, grad, calls):
    hidden, head, targets, weights = problem()
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with torch.set_grad_enabled(grad):
        logprobs, _ = chunked_logprobs(hidden, head, targets, 1.0, chunk_bytes, V)
    if grad:
        gradients(logprobs, weights, hidden, head)
    assert len(seen) == calls
