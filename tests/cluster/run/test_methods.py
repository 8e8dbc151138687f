"""Every method's recipe, run as a user runs it: the shipped file with a tiny model and small data in its place."""

import asyncio
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.whole_run import first_difference, kill_after, rows, volley
from volley.cluster.cli.demo import make_model, worked_answer
from volley.rewards.judge.fake_endpoint import MODEL, Endpoint, Reply
from volley.rollout.data.parquet import read_groups

RECIPES = Path(__file__).parents[3] / "recipes"
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
    "rollout.group_size": 4,
    "rollout.max_tokens": 16,
    "rollout.enforce_eager": "true",
}
PREFERRED = {**SAMPLED, "rewards": '["rewards.py:even"]'}
"""Right or wrong, about half and half, so that there are pairs under the margin and labels at the threshold shipped."""
ROUNDS = {"steps": 6, "publish_every": 3, "reference.refresh_every": 3, "data": "{train: data/few.jsonl}"}
"""Two rounds, each a pass over the twelve prompts."""
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
    few = [{"prompt": f"{a}+{b}=?", "answer": str(a + b)} for a, b in problems[:12]]
    parroted = [{"prompt": f"{a}+{b}=?", "completion": "7"} for a, b in problems]
    for name, content in {"few": few, "parroted": parroted}.items():
        (workspace / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (workspace / "rewards.py").write_text(
        "def digits(response, **row):\n    return sum(c.isdigit() for c in response) / max(1, len(response))\n"
        "def even(response, **row):\n    return float(sum(c.isdigit() for c in response) % 2 == 0)\n"
    )
    return workspace


def run(workspace: Path, recipe: str, **changes: Any) -> list[dict[str, Any]]:
    """The rows of a shipped recipe's run under the recipe's name, or that of `changes`."""
    arguments = [f"{key}={value}" for key, value in changes.items()]
    volley(workspace, "train", str(RECIPES / f"{recipe}.yaml"), *arguments)
    return rows(workspace, changes.get("name", recipe))


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
        again = run(data, name, **SMALL, data="{train: data/pairs.jsonl}", name="dpo-again")
        assert table.stat().st_mtime_ns == written
        assert [row["loss"] for row in again] == [row["loss"] for row in found]
        # Another model has a table of its own, in whatever order the rows come.
        make_model(data / "other", seed=1)
        changes = {**SMALL, "model": "other", "seed": 3, "steps": 1, "name": "dpo-other"}
        other = run(data, name, **changes, data="{train: data/pairs.jsonl}")
        assert len(list((data / "runs" / ".reference").glob("*.parquet"))) == 2
        assert table.stat().st_mtime_ns == written
        assert other[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_offline_labels(data: Path) -> None:
    found = run(data, "kto", **SMALL, data="{train: data/labels.jsonl}")
    assert found[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert found[-1]["loss"] < 0.5
    assert found[-1]["implicit_reward_desirable"] > found[-1]["implicit_reward_undesirable"]
    assert all(0 < row["desirable_share"] < 1 for row in found)


@pytest.mark.parametrize(
    ("loss", "first"),
    [
        pytest.param("dpo", math.log(2), id="dpo"),
        pytest.param("ipo", 25.0, id="ipo", marks=SLOW),  # (1 / (2 tau))^2
        pytest.param("simpo", None, id="simpo", marks=SLOW),
        pytest.param("orpo", None, id="orpo", marks=SLOW),
    ],
)
def test_online(data: Path, loss: str, first: float | None) -> None:
    found = run(data, "online-dpo", **PREFERRED, name=f"online-{loss}", loss=loss)
    assert [row["weight_version"] for row in found] == [1, 2, 3, 4]
    assert max(row["staleness_max"] for row in found) == 1
    assert all(row["accounting_residual"] == 0 and row["samples"] == 16 for row in found)
    for row in found:
        assert 0 < row["pair_yield"] <= 1
        assert 0 < row["pairs"] <= 4
        # The yield is that of all groups drawn for the step, those that were replaced among them.
        num_dropped = sum(row[f"pairs_dropped/{reason}"] for reason in ("tied", "unscorable", "same"))
        assert row["pair_yield"] == pytest.approx(row["pairs"] / (row["pairs"] + num_dropped))
        assert row["grad_norm"] > 0
        assert (row["kl"] is not None) == (first is not None), "a KL where there is a reference"
    if first is not None:
        assert found[0]["loss"] == pytest.approx(first, rel=1e-4)
        assert found[0]["kl"] == pytest.approx(0, abs=1e-5)
        assert found[-1]["kl"] > 1e-5
    assert found[-1]["loss"] != pytest.approx(found[0]["loss"], rel=1e-5)


@SLOW
def test_online_labels(data: Path) -> None:
    found = run(data, "online-kto", **PREFERRED)
    assert [row["weight_version"] for row in found] == [1, 2, 3, 4]
    assert all(row["accounting_residual"] == 0 and row["samples"] == 16 for row in found)
    assert all(0 < row["desirable_share"] < 1 for row in found)
    assert all(row["kl_baseline"] >= 0 for row in found)
    assert found[0]["loss"] == pytest.approx(0.5, abs=1e-4), "policy and reference are the same, whatever the labels"
    assert all(abs(row["loss"] - 0.5) > 1e-4 for row in found[1:])
    assert found[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["kl"] > 1e-5


@pytest.mark.parametrize("loss", ["dpo", pytest.param("ipo", marks=SLOW), pytest.param("simpo", marks=SLOW)])
def test_iterative_methods_sample_from_and_refer_to_the_round_before(data: Path, loss: str) -> None:
    changes = {**PREFERRED, **ROUNDS, "name": f"iterative-{loss}", "loss": loss}
    if loss == "simpo":
        changes["reference.refresh_every"] = 0
    found = run(data, "iterative-dpo", **changes)
    assert [row["weight_version"] for row in found] == [0, 0, 1, 1, 1, 2]
    if loss != "simpo":
        # At the start of a round policy and reference are the same.
        start = math.log(2) if loss == "dpo" else 25.0
        starts = [row["loss"] for row in found if row["step"] in (1, 4)]
        assert starts == pytest.approx([start] * 2, rel=1e-4)
        within = [row["loss"] for row in found if row["step"] % 3 != 1]
        assert all(value != pytest.approx(start, rel=1e-4) for value in within)
        assert [row["kl"] < 1e-5 for row in found] == [True, False, False] * 2
    # Each round is one pass over the prompts.
    taken = data / "runs" / f"iterative-{loss}" / "rollouts"
    for steps in ((1, 2, 3), (4, 5, 6)):
        groups = [group for step in steps for group in read_groups(taken / f"step-{step:06d}.parquet")]
        assert sorted(group.prompt.index for group in groups) == list(range(12))


SELF_PLAY = {
    **SAMPLED,
    **ROUNDS,
    "rewards": "[]",
    "rollout.group_size": 1,
    "rollout.max_tokens": 40,
}


@SLOW
def test_spin_prefers_the_data_and_ends_when_indistinguishable(data: Path) -> None:
    found = run(data, "spin", **{**SELF_PLAY, "data": "{train: data/shown.jsonl, completions: both}"})
    assert len(found) == 6
    assert all(row["pairs"] == 4 and row["samples"] == 4 for row in found)
    assert found[2]["preference_accuracy"] > 0.9, "a model that knows nothing is easy to tell from the data"
    # A model that was taught one answer, against data that has just that answer.
    parrot = data / "parrot.yaml"
    parrot.write_text(
        "{name: parrot, model: model, steps: 30, groups_per_step: 16, loss: sft, data: {train: data/parroted.jsonl},"
        " learner: {dtype: fp32, zero_stage: 1, lr: 3.0e-3}}"
    )
    volley(data, "train", str(parrot))
    assert rows(data, "parrot")[-1]["loss"] < 0.01
    changes = {**SELF_PLAY, "name": "spin-parrot", "model": "runs/parrot/model"}
    found = run(data, "spin", **{**changes, "data": "{train: data/parroted.jsonl, completions: both}"})
    assert len(found) == 3, "the first round is the last"
    assert all(row["pairs"] + row["pairs_same"] == 4 for row in found)
    assert sum(row["pairs_same"] for row in found) > 9
    assert not any(value for row in found for name, value in row.items() if name.startswith("dropped/")), "no redraw"


@SLOW
def test_self_play_killed_within_a_round_resumes_exactly(data: Path) -> None:
    """Policy, reference and the weights that play, which are those of the round before, are three different models."""
    content = "{train: data/shown.jsonl, completions: both}"
    changes = {**SELF_PLAY, "data": content, "steps": 9, "save_every": 2, "name": "spin-whole"}
    run(data, "spin", **changes)
    flags = [f"{key}={value}" for key, value in {**changes, "name": "spin-killed"}.items()]
    spin = RECIPES / "spin.yaml"
    kill_after(data, spin, "spin-killed", 5, 9, *flags)
    resumed = volley(data, "train", str(spin), "--resume", *flags)
    assert "resumed from step-000004" in resumed.stdout
    assert first_difference(data, "spin-killed", "spin-whole") == ""


@SLOW
def test_a_guard_against_stale_samples(data: Path) -> None:
    changes = {**SAMPLED, "name": "grpo-tis", "max_staleness": 2, "loss": "{name: grpo, guard: tis}"}
    found = run(data, "gsm8k-grpo", **changes)
    assert [row["staleness_max"] for row in found][:3] == [0, 1, 2]
    assert all(0 <= row["guard_share"] <= 1 for row in found)
    assert all(row["clip_share"] == 0 for row in found), "a guard takes the place of clipping"
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in found)


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
            changes = {**PREFERRED, "rewards": f"[{{name: judge, options: {options}}}]"}
            return await asyncio.to_thread(run, data, "rlaif", **changes)

    found = asyncio.run(judged())
    assert all(row["unscorable"] == 0 for row in found)
    assert sum(row["pairs"] for row in found) > 0
    # Of the whole run: with a staleness of 1 the last step's groups may have been judged while the one before learned.
    assert sum(row["judge/calls"] for row in found) > 0


def staged(data: Path, name: str, **stages: dict[str, Any]) -> Path:
    """The shipped recipe of a method in stages, small: what a stage says goes over what the file says of it."""
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    content |= {"model": "model", "groups_per_step": 16}
    content["learner"] = {"dtype": "fp32", "zero_stage": 1, "lr": 2e-3}
    assert [stage["name"] for stage in content["stages"]] == list(stages)
    content["stages"] = [stage | {"steps": 4} | stages[stage["name"]] for stage in content["stages"]]
    file = data / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def test_stages_pass_the_model_on(data: Path) -> None:
    kto, dpo = {"data": {"train": "data/labels.jsonl"}}, {"data": {"train": "data/pairs.jsonl"}}
    recipe = staged(data, "kto-then-dpo", kto=kto, dpo=dpo)
    done = volley(data, "train", str(recipe))
    assert "stage 1 of 2: kto" in done.stdout
    first, second = rows(data, "kto-then-dpo-kto"), rows(data, "kto-then-dpo-dpo")
    assert [len(first), len(second)] == [4, 4]
    assert first[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    # What the first stage learned is there at the second's first step, and is its reference.
    assert second[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    handed = yaml.safe_load((data / "runs" / "kto-then-dpo-dpo" / "recipe.yaml").read_text())["model"]
    assert handed == "runs/kto-then-dpo-kto/model"
    start, taught, final = (weights(data / each) for each in ("model", handed, "runs/kto-then-dpo-dpo/model"))
    assert any((start[name] - taught[name]).abs().max() > 1e-4 for name in taught)
    assert any((final[name] - taught[name]).abs().max() > 1e-4 for name in taught)
    again = volley(data, "train", str(recipe), "--resume")
    assert "stage 1 of 2: kto is done" in again.stdout
    assert "stage 2 of 2: dpo is done" in again.stdout
    broken = volley(data, "train", str(recipe), "name=other", "stage=ppo", ok=False)
    assert broken.returncode == 2
    assert "stage is 'ppo'; this recipe has kto, dpo" in broken.stderr


@SLOW
def test_demonstrations_first_then_rewards(data: Path) -> None:
    small = {"group_size": 4, "max_tokens": 16, "enforce_eager": True}
    sft = {"data": {"train": "data/shown.jsonl"}, "learner": {"lr": 2e-3}}
    grpo = {"data": {"train": "data/train.jsonl"}, "rollout": small, "rewards": ["rewards.py:digits"]}
    volley(data, "train", str(staged(data, "sft-then-grpo", sft=sft, grpo=grpo | {"groups_per_step": 4})))
    first, second = rows(data, "sft-then-grpo-sft"), rows(data, "sft-then-grpo-grpo")
    assert [len(first), len(second)] == [4, 4]
    assert first[-1]["loss"] < first[0]["loss"]
    assert all(row["grad_norm"] > 0 for row in second)
    handed = yaml.safe_load((data / "runs" / "sft-then-grpo-grpo" / "recipe.yaml").read_text())["model"]
    assert handed == "runs/sft-then-grpo-sft/model"
