"""Whole runs on a private Ray cluster: actors, vLLM in processes of its own, ZeRO ranks, weights over gloo."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.whole_run import recipe, rows, volley

CLUSTER = {"launcher": "ray", "max_staleness": 0, "cluster": {"worker_cpus": 1, "rank_cpus": 1}}


def test_synchronous_run_on_ray_equals_a_local_run(workspace: Path) -> None:
    """One worker and one rank in fp32: the same losses as the local launcher, to 1e-5."""
    changes: dict[str, Any] = {"steps": 20, "save_every": 10, "eval_every": 10}
    volley(workspace, "train", str(recipe(workspace, "by-hand", **changes)))
    volley(workspace, "train", str(recipe(workspace, "by-ray", **changes, **CLUSTER)))
    local, ray = rows(workspace, "by-hand"), rows(workspace, "by-ray")
    assert [row["step"] for row in ray] == list(range(1, 21))
    for ours, theirs in zip(ray, local, strict=True):
        for name in ("loss", "reward_mean", "completion_tokens", "entropy"):
            assert math.isclose(ours[name], theirs[name], rel_tol=0, abs_tol=1e-5), (name, ours["step"])
        assert ours["weight_version"] == ours["step"]
        assert ours["staleness_max"] == 0
        assert ours["accounting_residual"] == 0
        assert ours["push_attempts"] == 1
        assert ours.get("parity_mean", 0.0) < 1e-4
    assert (workspace / "runs" / "by-ray" / "model" / "model.safetensors").exists()


def test_two_ranks_under_zero_3_train_asynchronously(workspace: Path) -> None:
    changes: dict[str, Any] = {
        "steps": 8,
        "max_staleness": 2,
        "learner": {"ranks": 2, "zero_stage": 3, "dtype": "bf16"},
        "launcher": "ray",
        "cluster": {"worker_cpus": 0.5, "rank_cpus": 0.5},
    }
    volley(workspace, "train", str(recipe(workspace, "zero-3", **changes)))
    found = rows(workspace, "zero-3")
    assert len(found) == 8
    assert max(row["staleness_max"] for row in found) <= 2
    assert max(row["parity_mean"] for row in found if "parity_mean" in row) < 0.01
    assert all(row["accounting_residual"] == 0 for row in found)


@pytest.mark.faults
def test_an_engine_of_two_tensor_parallel_ranks_receives_the_weights(workspace: Path) -> None:
    changes: dict[str, Any] = {
        "steps": 4,
        "rollout": {"tensor_parallel": 2, "max_replacements": 0},
        **CLUSTER,
        "max_staleness": 1,
    }
    volley(workspace, "train", str(recipe(workspace, "tensor-parallel", **changes)))
    found = rows(workspace, "tensor-parallel")
    assert [row["weight_version"] for row in found] == [1, 2, 3, 4]
    # Log-probs of engine and learner after a push: both hold the same weights, or they would not be so close.
    assert all(row["parity_mean"] < 1e-4 for row in found[:3])
