"""Every method's recipe, run as a user runs it: the shipped file with a tiny model and small data in its place."""

import asyncio
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from whole_run import rows, volley

from cluster.demo import worked_answer
from rewards.fake_endpoint import MODEL, Endpoint, Reply

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {
    "model": "model",
    "steps": 10,
    "groups_per_step": 16,
    "save_every": 0,
    "eval_every": 0,
    "learner": "{dtype: fp32, zero_stage: 1, lr: 2.0e-3, max_tokens_per_micro_batch: 2048}",
}
SAMPLED = {
    **SMALL,
    "steps": 4,
    "groups_per_step": 4,
    "data": "{train: data/train.jsonl}",
    "rewards": '["rewards.py:digits"]',
    "signal": "{margin: 0.0}",
    "rollout": "{group_size: 4, max_tokens: 16, enforce_eager: true, max_replacements: 1}",
}
ROUNDS = {"steps": 6, "publish_every": 3, "reference.refresh_every": 3}
SLOW = pytest.mark.faults


@pytest.fixture(scope="module")
def data(workspace: Path) -> Path:
    """Worked sums against questions, as pairs, as labels and as demonstrations; and a reward."""
    rng = random.Random(0)
    problems = [(rng.randrange(10, 100), rng.randrange(10, 100)) for _ in range(160)]
    pairs, labels, shown = [], [], []
    for a, b in problems:
        right, wrong = worked_answer(a, b), f"{b}+{a}=?"
        pairs.append({"prompt": f"{a}+{b}=?", "chosen": right, "rejected": wrong})
        labels.append({"prompt": f"{a}+{b}=?", "completion": right, "label": True})
        labels.append({"prompt": f"{a}+{b}=?", "completion": wrong, "label": False})
        shown.append({"prompt": f"{a}+{b}=?", "completion": right})
    for name, content in {"pairs": pairs, "labels": labels, "shown": shown}.items():
        (workspace / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (workspace / "rewards.py").write_text(
        "def digits(response, **row):\n    return sum(c.isdigit() for c in response) / max(1, len(response))\n"
    )
    return workspace


def run(workspace: Path, recipe: str, **changes: Any) -> list[dict[str, Any]]:
    arguments = [f"{key}={value}" for key, value in changes.items()]
    volley(workspace, "train", str(RECIPES / f"{recipe}.yaml"), *arguments)
    return rows(workspace, recipe)


@pytest.mark.parametrize("name", ["dpo", "orpo", pytest.param("ipo", marks=SLOW), pytest.param("simpo", marks=SLOW)])
def test_offline_pairs(data: Path, name: str) -> None:
    found = run(data, name, **SMALL, data="{train: data/pairs.jsonl}")
    assert [row["step"] for row in found] == list(range(1, 11))
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["implicit_margin"] > found[0]["implicit_margin"]
    assert all(row["pair_yield"] == 1 for row in found)
    if name == "dpo":
        assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        # The starting model's log-probs were computed once, and lie where the next run finds them.
        (table,) = (data / "runs" / ".reference").glob("*.parquet")
        written = table.stat().st_mtime_ns
        again = run(data, name, **SMALL, data="{train: data/pairs.jsonl}", name="dpo-again") and rows(data, "dpo-again")
        assert table.stat().st_mtime_ns == written
        assert [row["loss"] for row in again] == [row["loss"] for row in found]


def test_offline_labels(data: Path) -> None:
    found = run(data, "kto", **SMALL, data="{train: data/labels.jsonl}")
    assert found[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert found[-1]["loss"] < 0.5
    assert found[-1]["implicit_reward_desirable"] > found[-1]["implicit_reward_undesirable"]
    assert all(0 < row["desirable_share"] < 1 for row in found)


@pytest.mark.parametrize("name", ["online-dpo", pytest.param("online-kto", marks=SLOW)])
def test_online(data: Path, name: str) -> None:
    found = run(data, name, **SAMPLED)
    assert [row["weight_version"] for row in found] == [1, 2, 3, 4]
    assert max(row["staleness_max"] for row in found) == 1
    assert all(row["accounting_residual"] == 0 and row["samples"] == 16 for row in found)
    assert found[0]["loss"] == pytest.approx(math.log(2) if name == "online-dpo" else 0.5, abs=1e-4)
    if name == "online-dpo":
        assert all(0 < row["pair_yield"] <= 1 for row in found)


def test_iterative_dpo_samples_and_refers_to_the_round_before(data: Path) -> None:
    found = run(data, "iterative-dpo", **{**SAMPLED, **ROUNDS})
    assert [row["weight_version"] for row in found] == [0, 0, 1, 1, 1, 2]
    # At the start of a round policy and reference are the same.
    starts = [row["loss"] for row in found if row["step"] in (1, 4)]
    assert starts == pytest.approx([math.log(2)] * 2, abs=1e-4)
    assert all(row["loss"] != pytest.approx(math.log(2), abs=1e-4) for row in found if row["step"] % 3 != 1)


def test_spin_prefers_the_data_and_ends_when_nobody_can_tell(data: Path) -> None:
    changes = {
        **SAMPLED,
        **ROUNDS,
        "data": "{train: data/shown.jsonl, completions: both}",
        "rewards": "[]",
        "rollout": "{group_size: 1, max_tokens: 40, enforce_eager: true}",
        "stop_at": "{indistinguishable: 0.55}",
    }
    found = run(data, "spin", **changes)
    assert all(row["pairs"] == 4 and row["samples"] == 4 for row in found)
    assert found[2]["preference_accuracy"] > 0.9, "a model that knows nothing is easy to tell from the data"
    # With a rate of nothing the round cannot tell the two apart, and the run ends at its end.
    still = {**changes, "name": "spin-still", "learner": "{dtype: fp32, zero_stage: 1, lr: 1.0e-12}"}
    volley(data, "train", str(RECIPES / "spin.yaml"), *(f"{key}={value}" for key, value in still.items()))
    assert len(rows(data, "spin-still")) == 3


@SLOW
@pytest.mark.parametrize("name", ["dr-grpo", "dapo", "gspo", "cispo", "rloo", "reinforce-pp", "ppo"])
def test_policy_gradient(data: Path, name: str) -> None:
    found = run(data, name, **SAMPLED)
    assert [row["weight_version"] for row in found] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in found)
    if name == "ppo":
        from safetensors import safe_open

        assert found[0]["value_mean"] == 0 != found[-1]["value_mean"]
        assert all(row["value_loss"] > 0 and row["explained_variance"] < 1 for row in found)
        with safe_open(data / "runs" / "ppo" / "model" / "model.safetensors", "pt") as exported:
            assert not [key for key in exported.keys() if "value" in key.split(".")[0]]  # noqa: SIM118


@SLOW
def test_a_reward_model_and_its_kl(data: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **shape)
    LlamaForSequenceClassification(config).save_pretrained(data / "scorer")
    tokenizer.save_pretrained(data / "scorer")
    rewards = "[{name: reward_model, options: {model: scorer, device: cpu}}]"
    found = run(data, "reward-model", **{**SAMPLED, "rewards": rewards})
    assert all(row["unscorable"] == 0 and row["zero_variance_share"] < 1 for row in found)
    assert all(row["grad_norm"] > 0 for row in found)
    assert found[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["kl"] > 0


@SLOW
def test_rlaif_learns_from_a_judge(data: Path) -> None:
    """A judge who prefers the response with more digits, behind a real endpoint."""

    def digits(text: str) -> int:
        return sum(character.isdigit() for character in text)

    def answer(request: dict[str, Any]) -> Reply:
        content = request["messages"][-1]["content"]
        first, second = re.findall(r"<judged_response_?\w*>\n(.*?)\n</judged_response", content, re.DOTALL)
        winner = "tie" if digits(first) == digits(second) else "A" if digits(first) > digits(second) else "B"
        return Reply(json.dumps({"reasoning": "counted", "winner": winner}))

    async def judged() -> list[dict[str, Any]]:
        async with Endpoint(answer) as endpoint:
            principles = RECIPES / "constitution.txt"
            options = f"{{endpoint: '{endpoint.url}', model: {MODEL}, principles: {principles}, mode: pairwise}}"
            changes = {**SAMPLED, "rewards": f"[{{name: judge, options: {options}}}]"}
            return await asyncio.to_thread(run, data, "rlaif", **changes)

    found = asyncio.run(judged())
    assert all(row["unscorable"] == 0 for row in found)
    assert sum(row["pairs"] for row in found) > 0
    # Of the whole run: with a staleness of 1 the last step's groups may have been judged while the one before learned.
    assert sum(row["judge/calls"] for row in found) > 0


def test_stages_hand_the_model_on(data: Path) -> None:
    recipe = data / "stages.yaml"
    recipe.write_text(
        "name: two\nmodel: model\ngroups_per_step: 16\nsteps: 4\n"
        "learner: {dtype: fp32, zero_stage: 1, lr: 2.0e-3}\n"
        "stages:\n"
        "  - {name: kto, loss: {name: kto, beta: 0.2}, data: {train: data/labels.jsonl}}\n"
        "  - {name: dpo, loss: dpo, data: {train: data/pairs.jsonl}, learner: {lr: 1.0e-3}}\n"
    )
    done = volley(data, "train", str(recipe))
    assert "stage 1 of 2: kto" in done.stdout
    assert (data / "runs" / "two-dpo" / "model" / "model.safetensors").exists()
    first, second = rows(data, "two-kto"), rows(data, "two-dpo")
    assert first[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    # What the first stage learned is there at the second's first step.
    plain = rows(data, "dpo")[0] if (data / "runs" / "dpo").exists() else None
    assert plain is None or second[0]["chosen_logprob"] > plain["chosen_logprob"]
    again = volley(data, "train", str(recipe), "--resume")
    assert "stage 1 of 2: kto is done" in again.stdout
    assert "stage 2 of 2: dpo is done" in again.stdout
    broken = volley(data, "train", str(recipe), "name=other", "stage=ppo", ok=False)
    assert broken.returncode == 2
    assert "stage is 'ppo'; this recipe has kto, dpo" in broken.stderr
