"""Each error with pairs, labels, references or stages gives one sentence before anything starts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from volley.cluster.cli.demo import make_model

Refusal = Callable[..., tuple[int, str]]
PAIR = {"prompt": "1+1=?", "chosen": "2", "rejected": "3"}
LABEL = {"prompt": "1+1=?", "completion": "2", "label": True}
ANSWER = {"prompt": "1+1=?", "answer": "2"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "model"
    make_model(directory, seed=0)
    return directory


CASES = [
    (3, [PAIR, {**PAIR, "rejected": "2"}], "dpo", "train.jsonl:2: chosen and rejected are the same text"),
    (3, [PAIR, {**PAIR, "chosen": ""}], "dpo", "train.jsonl:2: chosen: the completion is empty"),
    (3, [PAIR, {**PAIR, "chosen": None}], "dpo", "train.jsonl:2: 'chosen' is null"),
    (3, [{**LABEL, "completion": ""}], "kto", "train.jsonl:1: the completion is empty"),
    (3, [{**LABEL, "label": "yes"}], "kto", "the label is 'yes'; it must be true (desirable) or false"),
    (3, [{**LABEL, "label": 1}], "kto", "the label is 1; it must be true"),
    (2, [LABEL], "dpo", "dpo reads the columns chosen and rejected"),
    (2, [LABEL], "dpo", "it fits sft, kto"),
    (2, [PAIR], "kto", "kto reads the columns completion and label"),
    (2, [PAIR], "kto", "it fits dpo, ipo, simpo, orpo"),
    (2, [ANSWER], "orpo", "Name the columns with data.columns, or give rewards"),
    (2, [PAIR], "sft", "sft reads the column completion, and there are chosen, prompt, rejected; it fits dpo, ipo"),
    (3, [ANSWER], "sft", "there is no column 'completion'"),
]


def write(place: Path, model: Path, rows: list[dict[str, object]], loss: str) -> None:
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"name": "run", "model": str(model), "steps": 4, "groups_per_step": 1, "loss": loss}
    (place / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": {"train": "train.jsonl"}}))


@pytest.mark.parametrize(("code", "rows", "loss", "message"), CASES, ids=[case[3] for case in CASES])
def test_data_that_the_loss_cannot_learn_from(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Refusal,
    code: int,
    rows: list[dict[str, object]],
    loss: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, model, rows, loss)
    found, sentence = refusal()
    assert message in sentence
    assert found == code


ROUNDS_OF_1, ROUNDS_OF_2 = (f"stop_at.indistinguishable=0.55;reference.refresh_every={steps}" for steps in (1, 2))
OVERRIDES = [
    ("reference.refresh_every=2", "simpo", [PAIR], "simpo as configured has no reference"),
    ("publish_every=9", "dpo", [PAIR], "publish_every is 9 but the run has only 4 steps"),
    ("data.completions=policy", "sft", [LABEL], "sft imitates a data set's completions"),
    ("data.completions=dataset", "grpo", [ANSWER], "grpo learns from the policy's own samples"),
    ("data.completions=both", "kto", [LABEL], "kto does not read pairs; use one of dpo, ipo, simpo, orpo"),
    ("data.completions=mine", "dpo", [PAIR], "it must be 'auto', 'dataset', 'policy' or 'both'"),
    ("signal.pairs=worst", "dpo", [PAIR], "it must be 'best_worst' or 'all'"),
    ("signal.margin=-1", "dpo", [PAIR], "signal.margin is -1"),
    ("stop_at.indistinguishable=0.55", "dpo", [PAIR], "needs rounds of at least 2 steps"),
    (ROUNDS_OF_1, "dpo", [PAIR], "set reference.refresh_every, which is 1, to 2 or more"),
    (ROUNDS_OF_2, "kto", [LABEL], "kto does not read pairs; remove it, or use one of dpo, ipo"),
    ("reference.refresh_every=5", "dpo", [PAIR], "refresh_every is 5 but the run has only 4 steps"),
    ("loss={name: dpo, beta: 0}", "dpo", [PAIR], "loss.beta is 0"),
    ("loss={name: grpo, guard: tiss}", "grpo", [ANSWER], "loss.guard is 'tiss'"),
    ("stage=dpo", "dpo", [PAIR], "this recipe has no stages"),
]


@pytest.mark.parametrize(("override", "loss", "rows", "message"), OVERRIDES, ids=[case[0] for case in OVERRIDES])
def test_settings_that_do_not_fit(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Refusal,
    override: str,
    loss: str,
    rows: list[dict[str, object]],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, model, rows, loss)
    code, sentence = refusal(*override.split(";"))
    assert code == 2
    assert message in sentence


def test_a_single_completion_makes_no_pair(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, model, [ANSWER], "dpo")
    code, sentence = refusal("rewards=[math]", "rollout={group_size: 1, max_tokens: 16}")
    assert code == 2
    assert "rollout.group_size is 1, but dpo compares a group's completions" in sentence
