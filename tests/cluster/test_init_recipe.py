import copy
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy

from cluster.config import Recipe, load_recipe
from cluster.init_recipe import propose
from learner.losses import LOSSES
from rollout.errors import DataError, ModelError
from rollout.rows import read_rows

CHAT = [{"role": "user", "content": "2+2?"}]


def written(tmp_path: Path, *rows: dict[str, Any], name: str = "sums.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def proposed(tmp_path: Path, spec: str, model: str | None = None) -> tuple[Recipe, str]:
    """The recipe as `volley train` reads it, and its text; the loss takes its options and the data its columns."""
    text = propose(spec, model)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    recipe = load_recipe(str(file))
    LOSSES[recipe.loss.name](**recipe.loss.options)
    read_rows(recipe.data.train, recipe.data.columns, ("prompt",))
    return recipe, text


def test_gsm8k(gsm8k: Path, tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, str(gsm8k / "train.jsonl"))
    data = recipe.data
    assert (recipe.name, recipe.loss.name, recipe.groups_per_step) == ("gsm8k-grpo", "grpo", 32)
    assert data.columns == {"prompt": "question", "answer": "answer"}
    assert data.answer_after == "####"
    assert (data.test, recipe.eval_every) == (str(gsm8k / "test.jsonl"), 25)
    assert data.as_chat
    assert "<think>" in data.system
    assert [term.name for term in recipe.rewards] == ["math", "think_format"]
    assert (data.max_prompt_tokens, recipe.rollout.max_tokens) == (0, 512)
    assert "7,473 rows" in text
    assert "42 to 985 characters" in text
    assert all("#" in line for line in text.splitlines() if line.startswith(("steps", "groups", "max_stale", "seed")))


def test_prompt_and_answer_for_a_base_model(tmp_path: Path) -> None:
    spec = written(tmp_path, *({"problem": f"{i}+1", "final_answer": i + 1, "response": "x"} for i in range(5)))
    recipe, _ = proposed(tmp_path, spec, "some/base-model")
    assert recipe.data.columns == {"prompt": "problem", "answer": "final_answer"}
    assert (recipe.model, recipe.groups_per_step, recipe.eval_every) == ("some/base-model", 5, 0)
    assert (recipe.data.as_chat, recipe.data.system, recipe.data.answer_after) == (False, "", "")
    assert [term.name for term in recipe.rewards] == ["math"]


def test_chats(tmp_path: Path) -> None:
    recipe, _ = proposed(tmp_path, written(tmp_path, {"messages": CHAT, "answer": "4"}))
    assert recipe.data.columns["prompt"] == "messages"
    assert not recipe.data.as_chat


def test_answers_in_words_need_a_reward_of_ones_own(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, written(tmp_path, {"question": "capital of France?", "answer": "Paris"}))
    assert [(term.name, term.accuracy) for term in recipe.rewards] == [("reward.py:reward", True)]
    assert "def reward(prompt: str, response: str, answer: str, **row) -> float:" in text


def test_prompts_alone(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, written(tmp_path, {"prompt": "tell me a joke"}))
    assert (recipe.loss.name, recipe.data.columns) == ("grpo", {"prompt": "prompt"})
    assert [(term.name, term.accuracy) for term in recipe.rewards] == [("reward.py:reward", False)]
    assert "Your data has no answers" in text


@pytest.mark.parametrize(
    ("row", "completion"),
    [({"prompt": "hi", "completion": "hello"}, "completion"), ({"question": "why?", "answer": "so " * 200}, "answer")],
)
def test_demonstrations(tmp_path: Path, row: dict[str, str], completion: str) -> None:
    recipe, _ = proposed(tmp_path, written(tmp_path, *[row] * 100))
    assert (recipe.loss.name, recipe.data.columns["completion"]) == ("sft", completion)
    assert "answer" not in recipe.data.columns
    assert (recipe.steps, recipe.groups_per_step, recipe.rewards) == (7, 32, ())


def test_a_marker_must_stand_in_every_answer(tmp_path: Path) -> None:
    spec = written(tmp_path, {"prompt": "a", "answer": "so #### 1"}, {"prompt": "b", "answer": "2"})
    assert proposed(tmp_path, spec)[0].data.answer_after == ""


def test_odd_names_stay_yaml(tmp_path: Path) -> None:
    (tmp_path / "a: b, [c]").mkdir()
    spec = written(tmp_path / "a: b, [c]", {"prompt": "1", "Answer": "1", "a\nb: {": 0}, name="train #1 é.jsonl")
    written(tmp_path / "a: b, [c]", {"prompt": "1", "Answer": "1"}, name="test #1 é.jsonl")
    recipe, _ = proposed(tmp_path, spec, "dir with: colon/and #hash")
    assert (recipe.data.train, recipe.name) == (spec, "train-1-grpo")
    assert recipe.data.test.endswith("test #1 é.jsonl")
    assert recipe.data.columns["answer"] == "Answer"
    assert recipe.model == "dir with: colon/and #hash"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen and rejected are for preference losses"),
        ({"prompt": "a", "completion": "b", "label": True}, "a completion with a label is for KTO"),
        ({"text": "a", "id": 1}, r"none of its columns \(text, id\) is known as a prompt"),
        ({"prompt": None, "answer": "1"}, r"sums.jsonl:1: 'prompt' is null"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "4"}]}, "the last chat message is the assistant's"),
        ({"prompt": 3, "answer": "1"}, "the prompt is of type int"),
    ],
)
def test_what_cannot_be_learned_from(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        propose(written(tmp_path, row))
    assert "\n" not in str(caught.value)


def test_preferences_are_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this release does not have yet; it has GRPO, .* and SFT"):
        propose(written(tmp_path, {"chosen": "b", "rejected": "c"}))


def test_a_local_model_bounds_the_lengths(tmp_path: Path, char_tokenizer: Any) -> None:
    model = tmp_path / "model"
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(model)
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 300}))
    safetensors.numpy.save_file({"weight": numpy.zeros((2, 2), numpy.float32)}, model / "model.safetensors")
    recipe, _ = proposed(tmp_path, written(tmp_path, {"prompt": "1", "answer": "1"}), str(model))
    assert recipe.data.as_chat
    assert recipe.rollout.max_tokens == 150


def test_a_broken_model_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        propose(written(tmp_path, {"prompt": "1", "answer": "1"}), str(tmp_path / "model"))
