"""Real DeepSpeed: ranks, ZeRO stages and micro-batches do not change the result, and state is restored exactly."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learner.ranks.zero_driver import batch, train
from tests.learner.rows import row_values
from volley.cluster.cli.demo import make_model
from volley.learner.signals.advantages import Advantages
from volley.learner.signals.labels import Labels
from volley.learner.signals.returns import Returns

FP32 = {"dtype": "fp32", "zero_stage": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("zero") / "model"
    make_model(directory, seed=0, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    return directory


@pytest.fixture(scope="module")
def plain(model: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same three steps without DeepSpeed, micro-batches or padding: a row at a time, from the formulas."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)
    data, losses = batch(Advantages), []
    for _ in range(3):
        optimizer.zero_grad()
        total = torch.zeros(())
        for row, advantage in zip(row_values(data.rows), data.signal.values, strict=True):
            logits = policy(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
            table = torch.log_softmax(logits, -1)
            for t, token in enumerate(row.completion_ids):
                ratio = torch.exp(table[len(row.prompt_ids) + t - 1, token] - row.behaviour_logprobs[t])
                total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = total / data.counts.tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: parameter.detach() for name, parameter in policy.named_parameters()}


@pytest.fixture(scope="module")
def plain_kto(model: Path) -> list[tuple[float, float]]:
    """Loss and z of three steps of KTO with beta 0.5, in float64: a row at a time, from equation 8."""
    from transformers import AutoModelForCausalLM

    policy, reference = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64) for _ in range(2))

    def log_ratio(row: Any) -> torch.Tensor:
        """log pi(y|x) - log pi_ref(y|x)."""
        sides = []
        for network in (policy, reference):
            logits = network(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
            table = torch.log_softmax(logits, -1)
            sides.append(sum(table[len(row.prompt_ids) + t - 1, token] for t, token in enumerate(row.completion_ids)))
        return sides[0] - sides[1].detach()

    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)
    data, found = batch(Labels), []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.no_grad():
            mismatched = row_values(data.signal.mismatched)
            z = max(0.0, sum(float(log_ratio(row)) for row in mismatched) / len(mismatched))
        loss = torch.zeros((), dtype=torch.float64)
        for row, is_desirable in zip(row_values(data.rows), data.signal.values, strict=True):
            gap = log_ratio(row) - z
            loss = loss + (1 - torch.sigmoid(0.5 * (gap if is_desirable else -gap))) / data.counts.completions
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        found.append((float(loss.detach()), z))
    return found


@pytest.mark.parametrize(
    ("num_ranks", "learner"),
    [
        (1, {**FP32, "max_tokens_per_micro_batch": 64}),
        (1, {**FP32, "zero_stage": 2, "gradient_checkpointing": True}),
        (1, {**FP32, "zero_stage": 2, "cpu_offload": True}),
        (1, {**FP32, "zero_stage": 3, "max_tokens_per_micro_batch": 100}),
        (2, {**FP32, "zero_stage": 0}),
        (2, {**FP32, "zero_stage": 1, "max_tokens_per_micro_batch": 64}),
        (2, {**FP32, "zero_stage": 2, "logprob_chunk_bytes": 1024}),
        (2, {**FP32, "zero_stage": 3, "max_tokens_per_micro_batch": 64}),
    ],
    ids=str,
)
def test_ranks_zero_stages_and_micro_batches_give_the_same_steps(
    model: Path, plain: tuple[list[float], dict[str, torch.Tensor]], tmp_path: Path, num_ranks: int, learner: Any
) -> None:
    metrics, weights = train(model, tmp_path / "w", num_ranks, learner=learner)
    assert [step["loss"] for step in metrics] == pytest.approx(plain[0], abs=2e-5)
    assert all(step["grad_norm"] > 0 for step in metrics)
    for name, expected in plain[1].items():
        # Adam divides by the root of tiny squares, so a rounding error of a gradient near zero is a visible step.
        assert (weights[name] - expected).abs().mean() < 2e-5, name


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_ranks_micro_batches_and_a_recorded_reference_do_not_change_the_result(
    model: Path, plain_kto: list[tuple[float, float]], tmp_path: Path, name: str
) -> None:
    """One rank with a copy of the initial model, and two ranks with only the table of its log-probs."""
    options = {"name": name, "loss": {"beta": 0.5}}
    whole, weights = train(model, tmp_path / "w", 1, learner=FP32, **options)
    shared = {**FP32, "zero_stage": 2, "max_tokens_per_micro_batch": 64}
    table = tmp_path / "table.parquet"
    for _ in range(2):  # computed, then read
        metrics, others = train(model, tmp_path / "v", 2, learner=shared, recorded=table, **options)
        for ours, theirs in zip(whole, metrics, strict=True):
            for key in {"loss", "implicit_margin", "implicit_reward_desirable", "kl_baseline"} & ours.keys():
                assert theirs[key] == pytest.approx(ours[key], abs=1e-4), key
        assert all((weights[key] - others[key]).abs().mean() < 5e-5 for key in weights)
        assert table.exists()
    assert whole[0]["loss"] == pytest.approx(math.log(2) if name == "dpo" else 0.5, abs=1e-5)
    assert whole[2]["loss"] < whole[0]["loss"]
    if name == "kto":
        assert whole[2]["kl_baseline"] > 0
        for step, (loss, z) in zip(whole, plain_kto, strict=True):
            assert step["loss"] == pytest.approx(loss, abs=1e-4)
            assert step["kl_baseline"] == pytest.approx(z, rel=1e-3, abs=1e-5)


def test_bf16_stays_close_to_fp32(model: Path, plain: Any, tmp_path: Path) -> None:
    for stage in (0, 1, 2):
        metrics, _ = train(model, tmp_path / "w", learner={"dtype": "bf16", "zero_stage": stage})
        assert [step["loss"] for step in metrics] == pytest.approx(plain[0], abs=0.06)


@pytest.mark.parametrize("learner", [{**FP32}, {**FP32, "zero_stage": 3}, {"dtype": "bf16", "zero_stage": 2}], ids=str)
def test_a_resumed_learner_takes_the_same_step_bitwise(model: Path, tmp_path: Path, learner: Any) -> None:
    loss = {"beta": 0.1}
    whole, weights = train(model, tmp_path / "whole", learner=learner, loss=loss)
    train(model, tmp_path / "part", learner=learner, loss=loss, save=tmp_path / "state")
    resumed, again = train(model, tmp_path / "again", learner=learner, loss=loss, resume=tmp_path / "state")
    assert resumed[0]["loss"] == whole[2]["loss"]
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    # The reference is the starting model, also after the resume.
    assert whole[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert whole[2]["kl"] > 1e-3


PPO = {"name": "ppo", "loss": {"value_lr": 0.02}, "head": True}


def test_a_critic_on_two_ranks_equals_one_rank_and_the_formulas(model: Path, tmp_path: Path) -> None:
    """Pushed and exported is the language model without the value head, which learns all the same."""
    from transformers import AutoModelForCausalLM

    whole, weights = train(model, tmp_path / "w", 1, learner=FP32, **PPO)
    policy = AutoModelForCausalLM.from_pretrained(model)
    assert weights.keys() - dict(policy.named_parameters()).keys() == {"value_head.weight", "value_head.bias"}
    assert weights["value_head.weight"].abs().min() > 0
    assert whole[0]["value_mean"] == 0
    # All values are 0: the return of a token is lam^(tokens after it) times the reward.
    data = batch(Returns)
    returns = [
        reward * 0.95**k
        for row, reward in zip(row_values(data.rows), data.signal.rewards, strict=True)
        for k in range(len(row.completion_ids))
    ]
    assert whole[0]["return_mean"] == pytest.approx(sum(returns) / len(returns), abs=1e-6)
    assert whole[0]["value_loss"] == pytest.approx(sum(r * r for r in returns) / len(returns), abs=1e-5)
    assert whole[0]["explained_variance"] == pytest.approx(0, abs=1e-6)
    for stage in (2, 3):
        shared = {**FP32, "zero_stage": stage, "max_tokens_per_micro_batch": 64}
        metrics, others = train(model, tmp_path / "v", 2, learner=shared, **PPO)
        for ours, theirs in zip(whole, metrics, strict=True):
            for key in ("loss", "value_loss", "value_mean", "return_mean", "explained_variance", "grad_norm"):
                assert theirs[key] == pytest.approx(ours[key], abs=1e-4), (stage, key)
        assert all((weights[key] - others[key]).abs().mean() < 5e-5 for key in weights)


def test_a_critic_learns_to_predict_rewards(model: Path, tmp_path: Path) -> None:
    options = {**PPO, "loss": {"value_lr": 0.01, "value_weight": 1.0, "lam": 1.0}}
    metrics, _ = train(model, tmp_path / "w", learner={**FP32, "lr": 1e-3}, steps=25, **options)
    assert metrics[0]["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["explained_variance"] > 0.8
    assert metrics[-1]["value_loss"] < 0.2 * metrics[0]["value_loss"]


@pytest.mark.parametrize("learner", [{**FP32}, {**FP32, "zero_stage": 3}, {"dtype": "bf16", "zero_stage": 2}], ids=str)
def test_a_critic_resumes_bitwise(model: Path, tmp_path: Path, learner: Any) -> None:
    whole, weights = train(model, tmp_path / "whole", learner=learner, **PPO)
    train(model, tmp_path / "part", learner=learner, save=tmp_path / "state", **PPO)
    resumed, again = train(model, tmp_path / "again", learner=learner, resume=tmp_path / "state", **PPO)
    assert resumed[0]["loss"] == whole[2]["loss"]
    assert resumed[0]["value_mean"] == whole[2]["value_mean"] != 0
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_crafted_state_file_runs_nothing(model: Path, tmp_path: Path) -> None:
    train(model, tmp_path / "w", learner=FP32, save=tmp_path / "state")
    trace = tmp_path / "it-ran"
    for path in (tmp_path / "state").rglob("*.pt"):

        class Attack:
            def __reduce__(self) -> Any:
                return (Path.touch, (trace,))

        path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(AssertionError, match=r"[Ww]eights.only|Unsupported|pickle"):
        train(model, tmp_path / "w", learner=FP32, resume=tmp_path / "state")
    assert not trace.exists()


def test_a_stale_lock_of_a_killed_process_blocks_no_one(model: Path, tmp_path: Path) -> None:
    """A lock file guards DeepSpeed's compiled extensions, so none is compiled or loaded."""
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    environment = {"TORCH_EXTENSIONS_DIR": str(lock.parent.parent)}
    metrics, _ = train(model, tmp_path / "weights", num_ranks=2, learner=FP32, environment=environment)
    assert len(metrics) > 0
    assert [path for path in lock.parent.parent.rglob("*") if path.is_file()] == [lock]
