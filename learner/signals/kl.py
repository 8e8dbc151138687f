"""Per-token estimates of the KL divergence between two policies."""

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this against overflow, in nats."""
KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(kind: str, logprobs_NT: Tensor, reference_NT: Tensor) -> Tensor:
    """Per-token estimates of KL(pi || pi_ref) from samples of pi, [N, T], with d = log pi_ref - log pi.

    k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman, "Approximating KL divergence", 2020; k3 is equation 4 of
    arXiv 2402.03300). As losses they differ: on policy the expected gradient of k2 is that of KL(pi || pi_ref), of k3
    that of KL(pi_ref || pi), and of k1 it is zero. d is clamped from above at 20 against overflow.
    """
    d_NT = (reference_NT - logprobs_NT).clamp(max=MAX_LOG_RATIO)
    if kind == "k1":
        return -d_NT
    if kind == "k2":
        return d_NT.square() / 2
    assert kind == "k3", kind
    return d_NT.expm1() - d_NT
