import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy
import yaml

from volley.cluster.cli.main import main
from volley.cluster.data_tools.data_kind import KINDS, fitting
from volley.cluster.data_tools.init_method import MethodOptions, choose, cost, guide_of, methods
from volley.cluster.data_tools.init_recipe import propose
from volley.cluster.recipe.config import Recipe, load_recipe, parse_recipe
from volley.cluster.recipe.prepare import build_loss, prepare
from volley.learner.losses import LOSSES
from volley.rollout.data.rows import read_rows
from volley.rollout.errors import ConfigError, DataError, ModelError
from volley.rollout.model_files import inspect_model

PAIR = ("chosen", "rejected")
CHAT = [{"role": "user", "content": "2+2?"}]


@pytest.fixture(scope="session")
def chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    model = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_model, model)
    template = "{% for message in messages %}{{ message.content }}\\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    return model


def written(tmp_path: Path, *rows: dict[str, Any], name: str = "sums.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def proposed(tmp_path: Path, spec: str, model: str | None = None) -> tuple[Recipe, str]:
    """The parsed recipe and its text, after checking the options of the loss and the columns of the data."""
    text = propose(spec, model)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    recipe = load_recipe(str(file))
    LOSSES[recipe.loss.name](**recipe.loss.options)
    read_rows(recipe.data.train, recipe.data.columns, ("prompt",))
    return recipe, text


def test_gsm8k_gets_grpo_with_math_rewards(gsm8k_each: Path, tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, str(gsm8k_each / "train.jsonl"))
    data = recipe.data
    assert (recipe.name, recipe.loss.name, recipe.groups_per_step) == ("gsm8k-grpo", "grpo", 32)
    assert data.columns == {"prompt": "question", "answer": "answer"}
    assert data.answer_after == "####"
    assert (data.test, recipe.eval_every) == (str(gsm8k_each / "test.jsonl"), 25)
    assert data.as_chat
    assert "<think>" in data.system
    assert [term.name for term in recipe.rewards] == ["math", "think_format"]
    assert (data.max_prompt_tokens, recipe.rollout.max_tokens) == (0, 512)
    assert "64 rows" in text or "7,473 rows" in text
    assert "42 to 985 characters" in text
    assert all("#" in line for line in text.splitlines() if line.startswith(("steps", "groups", "max_stale", "seed")))


def test_base_model_gets_plain_prompts(tmp_path: Path) -> None:
    spec = written(tmp_path, *({"problem": f"{i}+1", "final_answer": i + 1, "response": "x"} for i in range(5)))
    recipe, _ = proposed(tmp_path, spec, "some/base-model")
    assert recipe.data.columns == {"prompt": "problem", "answer": "final_answer"}
    assert (recipe.model, recipe.groups_per_step, recipe.eval_every) == ("some/base-model", 5, 0)
    assert (recipe.data.as_chat, recipe.data.system, recipe.data.answer_after) == (False, "", "")
    assert [term.name for term in recipe.rewards] == ["math"]


def test_messages_column_is_used_as_prompt(tmp_path: Path) -> None:
    recipe, _ = proposed(tmp_path, written(tmp_path, {"messages": CHAT, "answer": "4"}))
    assert recipe.data.columns["prompt"] == "messages"
    assert not recipe.data.as_chat


def test_answers_in_words_need_a_custom_reward(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, written(tmp_path, {"question": "capital of France?", "answer": "Paris"}))
    assert [(term.name, term.accuracy) for term in recipe.rewards] == [("reward.py:reward", True)]
    assert "def reward(prompt: str, response: str, answer: str, **row) -> float:" in text


def test_prompts_without_answers_need_a_custom_reward(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, written(tmp_path, {"prompt": "tell me a joke"}))
    assert (recipe.loss.name, recipe.data.columns) == ("grpo", {"prompt": "prompt"})
    assert [(term.name, term.accuracy) for term in recipe.rewards] == [("reward.py:reward", False)]
    assert "Your data has no answers" in text


@pytest.mark.parametrize(
    ("row", "completion"),
    [({"prompt": "hi", "completion": "hello"}, "completion"), ({"question": "why?", "answer": "so " * 200}, "answer")],
)
def test_demonstrations_get_sft(tmp_path: Path, row: dict[str, str], completion: str) -> None:
    recipe, _ = proposed(tmp_path, written(tmp_path, *[row] * 100))
    assert (recipe.loss.name, recipe.data.columns["completion"]) == ("sft", completion)
    assert "answer" not in recipe.data.columns
    assert (recipe.steps, recipe.groups_per_step, recipe.rewards) == (7, 32, ())


def test_marker_must_occur_in_every_answer(tmp_path: Path) -> None:
    spec = written(tmp_path, {"prompt": "a", "answer": "so #### 1"}, {"prompt": "b", "answer": "2"})
    assert proposed(tmp_path, spec)[0].data.answer_after == ""


def test_unusual_names_are_quoted(tmp_path: Path) -> None:
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
        ({"chosen": "b", "rejected": "c"}, r"no prompt column found among chosen, rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, r"sums.jsonl:1: 'rejected' is null"),
        ({"prompt": "a", "completion": "b", "label": 1}, r"sums.jsonl:1: the label is 1; it must be true"),
        ({"text": "a", "id": 1}, r"no prompt column found among text, id"),
        ({"prompt": None, "answer": "1"}, r"sums.jsonl:1: 'prompt' is null"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "4"}]}, "the last chat message is the assistant's"),
        ({"prompt": 3, "answer": "1"}, "the prompt is of type int"),
    ],
)
def test_unusable_data_is_refused(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        propose(written(tmp_path, row))
    assert "\n" not in str(caught.value)


def rows_of(kind: str, number: int = 64) -> list[dict[str, Any]]:
    texts = [f"What is {i} + 1?" for i in range(number)]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"prompt": text, "chosen": "x", "rejected": "y"} for text in texts],
        "conversations": [
            {side: [{"role": "user", "content": text}, {"role": "assistant", "content": side}] for side in PAIR}
            for text in texts
        ],
        "labels": [{"prompt": text, "response": "x", "label": i % 2 == 0} for i, text in enumerate(texts)],
        "answers": [{"question": text, "answer": str(i)} for i, text in enumerate(texts)],
        "demonstrations": [{"prompt": text, "completion": "x"} for text in texts],
    }
    return rows[kind]


@pytest.mark.parametrize(
    ("kind", "options", "name", "lr"),
    [
        ("pairs", MethodOptions(), "ipo", 5e-7),
        ("conversations", MethodOptions(), "ipo", 5e-7),
        ("pairs", MethodOptions(loss="DPO"), "dpo", 5e-7),
        ("pairs", MethodOptions(concise=True), "simpo", 1e-6),
        ("pairs", MethodOptions(low_memory=True), "orpo", 8e-6),
        ("pairs", MethodOptions(concise=True, low_memory=True), "simpo", 1e-6),
        ("labels", MethodOptions(), "kto", 5e-7),
        ("answers", MethodOptions(), "grpo", 1e-6),
        ("answers", MethodOptions(loss="rloo"), "rloo", 1e-6),
        ("answers", MethodOptions(loss="dpo"), "dpo", 5e-7),
        ("answers", MethodOptions(loss="kto"), "kto", 5e-7),
        ("demonstrations", MethodOptions(), "sft", 1e-5),
        ("demonstrations", MethodOptions(spin=True), "spin", 5e-7),
    ],
)
def test_method_for_each_kind_of_data(tmp_path: Path, kind: str, options: MethodOptions, name: str, lr: float) -> None:
    spec = written(tmp_path, *rows_of(kind))
    text = propose(spec, "some/base-model", options)
    recipe = yaml.safe_load(text)
    loss = dict(recipe["loss"])
    assert loss.pop("name") == ("dpo" if name == "spin" else name)
    LOSSES[recipe["loss"]["name"]](**loss)
    assert recipe["learner"]["lr"] == lr
    assert f"Proposed method: {guide_of(name).title}." in text
    is_sampled = kind == "answers" or name == "spin"
    assert ("rollout" in recipe) == is_sampled
    assert ("rewards" in recipe) == (kind == "answers")
    assert (
        set(recipe["data"]["columns"])
        == {
            "pairs": {"prompt", *PAIR},
            "conversations": {"prompt", *PAIR},
            "labels": {"prompt", "completion", "label"},
            "answers": {"prompt", "answer"},
            "demonstrations": {"prompt", "completion"},
        }[kind]
    )
    if name == "spin":
        assert (recipe["publish_every"], recipe["reference"]["refresh_every"], recipe["steps"]) == (2, 2, 6)
        assert (recipe["rollout"]["group_size"], recipe["stop_at"]) == (1, {"indistinguishable": 0.55})


def test_dpo_is_proposed_for_many_pairs() -> None:
    assert (choose("pairs", 9_999, MethodOptions()).name, choose("pairs", 10_000, MethodOptions()).name) == (
        "ipo",
        "dpo",
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, MethodOptions(loss=loss)) for kind in ("pairs", "labels", "answers") for loss in fitting(kind)),
        ("conversations", MethodOptions()),
        ("demonstrations", MethodOptions()),
        ("demonstrations", MethodOptions(spin=True)),
    ],
)
def test_proposed_recipes_are_valid(tmp_path: Path, chat_model: Path, kind: str, options: MethodOptions) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(propose(written(tmp_path, *rows_of(kind)), str(chat_model), options))
    parts = prepare(load_recipe(str(file)))
    method = choose("pairs" if kind == "conversations" else kind, 64, options)
    assert (parts.loss.needs_reference, parts.needs_engine) == (method.needs_reference, method.is_sampled)


@pytest.mark.parametrize("name", [name for name in methods() if name != "spin"])
def test_needs_reference_matches_the_loss(name: str) -> None:
    kind = next(kind for kind in KINDS if name in fitting(kind))
    options = yaml.safe_load(choose(kind, 64, MethodOptions(loss=name)).loss)
    loss = build_loss(parse_recipe({"name": "x", "model": "x", "data": {"train": "x"}, "steps": 1, "loss": options}))
    assert loss.needs_reference == (name in ("dpo", "ipo", "kto"))


def test_every_loss_is_proposed_for_some_data() -> None:
    assert {name for kind in KINDS for name in fitting(kind)} == {*LOSSES, "spin"} == set(methods())


def test_methods_for_each_kind_of_data() -> None:
    sampled = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo")
    paired = ("dpo", "ipo", "simpo", "orpo")
    assert {kind: fitting(kind) for kind in KINDS} == {
        "pairs": paired,
        "labels": ("kto",),
        "answers": (*sampled, *paired, "kto"),
        "demonstrations": ("sft", "spin"),
        "prompts": (*sampled, *paired, "kto"),
    }


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        (
            "pairs",
            MethodOptions(loss="kto"),
            r"--loss kto: KTO cannot train on .*; supported methods: dpo, ipo, simpo, orpo\.",
        ),
        (
            "labels",
            MethodOptions(concise=True),
            r"--concise: SimPO cannot train on rows with a labelled response; .* kto\.",
        ),
        ("answers", MethodOptions(spin=True), "--spin: SPIN cannot train on"),
        ("demonstrations", MethodOptions(loss="nonsense"), "unknown method; methods for your data: sft, spin"),
        ("pairs", MethodOptions(loss="dpo", concise=True), "--loss dpo and --concise both select"),
        ("demonstrations", MethodOptions(spin=True, low_memory=True), "--spin and --low-memory select different"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(kind: str, options: MethodOptions, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        choose(kind, 64, options)


@pytest.mark.parametrize(("good", "bad"), [(60, 40), (95, 5), (10, 90), (400, 600)])
def test_kto_weights_balance_the_classes(good: int, bad: int) -> None:
    loss = yaml.safe_load(choose("labels", good + bad, MethodOptions(), [True] * good + [False] * bad).loss)
    ratio = good * loss["desirable_weight"] / (bad * loss["undesirable_weight"])
    assert 1 <= ratio <= 4 / 3 or (good, bad) == (60, 40)
    assert 1.0 in (loss["desirable_weight"], loss["undesirable_weight"])


def test_cost_in_copies_of_the_model(tiny_model: Path) -> None:
    size = inspect_model(tiny_model).num_parameters * 16 / 2**30
    offline = cost(choose("pairs", 64, MethodOptions(loss="dpo")), str(tiny_model))
    assert offline.startswith(
        f"one copy of the model: the model being trained ({size:.3g} GiB); reference log-probs are precomputed"
    )
    assert "no reference model" in cost(choose("pairs", 64, MethodOptions(low_memory=True)), str(tiny_model))
    assert cost(choose("demonstrations", 64, MethodOptions(spin=True)), str(tiny_model)).startswith(
        "3 copies of the model:"
    )
    assert cost(choose("answers", 64, MethodOptions()), "org/Model-7B-Instruct").startswith(
        "2 copies of the model: the model being trained (about 104 GiB) and the rollout engine's copy (about 13 GiB)"
    )
    assert "GiB" not in cost(choose("answers", 64, MethodOptions()), "org/model")


def test_command_prints_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recipe.yaml"
    spec = written(tmp_path, *rows_of("pairs"))
    assert main(["init", "--data", spec, "--out", str(out), "--low-memory"]) == 0
    assert "Proposed method: ORPO. You have 64 pairs." in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["loss"] == {"name": "orpo", "odds_weight": 0.1}
    assert main(["init", "--data", spec, "--out", str(tmp_path / "other.yaml"), "--loss", "sft"]) == 2


def test_local_model_limits_max_tokens(tmp_path: Path, char_tokenizer: Any) -> None:
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


def test_broken_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        propose(written(tmp_path, {"prompt": "1", "answer": "1"}), str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("kind", "options", "is_set"),
    [
        ("pairs", MethodOptions(), True),
        ("conversations", MethodOptions(), True),
        ("labels", MethodOptions(), True),
        ("answers", MethodOptions(), True),
        ("demonstrations", MethodOptions(), True),
        ("demonstrations", MethodOptions(spin=True), False),
    ],
)
def test_test_file_next_to_the_data_is_used(
    tmp_path: Path, chat_model: Path, kind: str, options: MethodOptions, is_set: bool
) -> None:
    """SPIN has no rewards for an evaluation; it stops by a metric of training."""
    rows = rows_of(kind)
    spec, held_out = written(tmp_path, *rows, name="train.jsonl"), written(tmp_path, *rows[:8], name="test.jsonl")
    file = tmp_path / "recipe.yaml"
    file.write_text(propose(spec, str(chat_model), options))
    recipe = load_recipe(str(file))
    assert (recipe.data.test, recipe.eval_every) == ((held_out, 25) if is_set else ("", 0))
    parts = prepare(recipe)
    assert (len(parts.test_dataset or ()), len(parts.test_prompts)) == (
        (0, 8) if kind == "answers" else (8 if is_set else 0, 0)
    )


def test_test_file_of_another_kind_is_ignored(tmp_path: Path) -> None:
    spec = written(tmp_path, *rows_of("pairs"), name="train.jsonl")
    written(tmp_path, *rows_of("labels"), name="test.jsonl")
    assert "test" not in yaml.safe_load(propose(spec, "some/base-model"))["data"]
