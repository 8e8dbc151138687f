"""Each user error gives one sentence and its exit code before anything starts or is written."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from volley.cluster.cli.demo import make_model
from volley.cluster.cli.main import main

Change = Callable[[Path], None]
Refusal = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    make_model(root / "model", seed=0)
    return root


@pytest.fixture
def place(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory where a run would start without complaint; tests spoil one thing in it."""
    shutil.copytree(good / "model", tmp_path / "model")
    rows = [{"prompt": f"{a}+{b}=?", "answer": str(a + b)} for a in range(3) for b in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "run",
        "model": "model",
        "steps": 4,
        "groups_per_step": 2,
        "data": {"train": "train.jsonl"},
        "rollout": {"group_size": 4, "max_tokens": 16},
        "rewards": ["math"],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_of_a_valid_recipe_starts_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe.yaml", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 groups x 4 completions = 8 samples a step" in text
    assert "GiB" in text
    assert not Path("runs").exists()


OVERRIDES = [
    (2, "stepz=3", "did you mean 'steps'"),
    (2, "rollout.max_tokenz=3", "did you mean 'rollout.max_tokens'"),
    (2, "steps=many", "must be a whole number"),
    (2, "rollout.group_size=1", "group_size is 1"),
    (2, "loss.clip_hi=0.3", "did you mean 'loss.clip_high'"),
    (2, "loss.clip_low=3", "loss.clip_low is 3"),
    (2, "loss.name=gpro", "loss.name is 'gpro'; it must be one of grpo"),
    (2, "learner.ranks=2", "local launcher runs one of each"),
    (2, "rollout.max_tokens=4000", "more than the 256 tokens that 'model' takes"),
    (2, "data.max_prompt_tokens=250", "data.max_prompt_tokens (250) + max_tokens (16)"),
    (2, "rewards=[]", "no rewards"),
    (2, "reference.refresh_every=3", "has no reference"),
    (2, "data.test=train.jsonl stop_at.pass_at_1=0.9", "needs evaluations"),
    (3, "data.train=nothing.jsonl", "nothing.jsonl: no such file"),
    (3, "data.columns.prompt=question", "the columns are: prompt, answer"),
    (3, "data.columns.answer=gold", "there is no column 'gold' for the answer"),
    (3, "data.on_long=refuse data.max_prompt_tokens=2", "data.max_prompt_tokens is 2"),
    (5, "model=nowhere/at/all", "does not exist"),
    (6, "rewards=[maths]", "math"),
    (6, "rewards=[missing.py:f]", "missing.py"),
    (6, "rewards=[no_such_package.x:f]", "no_such_package"),
    (4, "--resume", "nothing to resume"),
]


@pytest.mark.parametrize(("code", "arguments", "message"), OVERRIDES, ids=[row[1][:40] for row in OVERRIDES])
def test_a_wrong_recipe(place: Path, refusal: Refusal, code: int, arguments: str, message: str) -> None:
    found, sentence = refusal(*arguments.split())
    assert message in sentence
    assert found == code, sentence


def rewrite_config(change: dict[str, Any]) -> Change:
    def apply(place: Path) -> None:
        path = place / "model" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return apply


def cut_weights(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_weights(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    path.rename(place / "model" / "pytorch_model.bin")


def half_a_header(place: Path) -> None:
    (place / "model" / "model.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{")


def narrow_heads(place: Path) -> None:
    rewrite_config({"head_dim": 16})(place)


def smaller_vocabulary(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:10].clone()
    save_file(tensors, path)
    rewrite_config({"vocab_size": 10})(place)


MODELS: list[tuple[Change, str]] = [
    (lambda place: (place / "model" / "config.json").unlink(), "no config.json"),
    (lambda place: (place / "model" / "model.safetensors").unlink(), "is missing"),
    (cut_weights, "is truncated: its header"),
    (half_a_header, "is truncated or not a safetensors file"),
    (pickle_weights, "only pickled weights"),
    (smaller_vocabulary, "only has 10 embeddings"),
    (rewrite_config({"auto_map": {"AutoModelForCausalLM": "x.Y"}}), "trust_remote_code"),
    (narrow_heads, "head_dim"),
]


@pytest.mark.parametrize(("spoil", "message"), MODELS, ids=[message for _, message in MODELS])
def test_a_wrong_model(place: Path, refusal: Refusal, spoil: Change, message: str) -> None:
    spoil(place)
    code, sentence = refusal()
    assert message in sentence
    assert code == 5


def rows(text: str) -> Change:
    return lambda place: (place / "train.jsonl").write_text(text) and None  # type: ignore[func-returns-value]


DATA: list[tuple[Change, str]] = [
    (lambda place: (place / "train.jsonl").write_text("") and None, "no rows"),  # type: ignore[list-item]
    (rows('{"prompt": "1+1=?", "answer": "2"}\n{"prompt": \n'), "train.jsonl:2: broken JSON"),
    (rows('{"prompt": null, "answer": "2"}\n'), "train.jsonl:1: 'prompt' is null"),
    (rows('{"prompt": "1", "answer": null}\n'), "train.jsonl:1: 'answer' is null"),
    (rows('["prompt"]\n'), "train.jsonl:1: the line holds a JSON list"),
    (rows('{"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}\n'), "chat template"),
]


@pytest.mark.parametrize(("spoil", "message"), DATA, ids=[message for _, message in DATA])
def test_wrong_data(place: Path, refusal: Refusal, spoil: Change, message: str) -> None:
    spoil(place)
    code, sentence = refusal()
    assert message in sentence
    assert code == (5 if "template" in message else 3)


REWARDS = [
    ("def f(response): return 1.0", "does not take 'prompt'"),
    ("def f(prompt, response, answer, nonsense): return 1.0", "nonsense"),
    ("f = 3", "f"),
    ("1 / 0\ndef f(response): return 1.0", "ZeroDivisionError"),
    ("def g(response): return 1.0", "f"),
    ("import time\ntime.sleep(60)\ndef f(response): return 1.0", "hangs at import"),
]


@pytest.mark.parametrize(("source", "message"), REWARDS, ids=[message for _, message in REWARDS])
def test_a_reward_that_cannot_be_used(place: Path, refusal: Refusal, source: str, message: str) -> None:
    (place / "mine.py").write_text(source)
    code, sentence = refusal("rewards=[mine.py:f]")
    assert message in sentence
    assert code == 6


def test_usage_errors_have_the_code_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert main(["train"]) == 2
    assert main(["train", "no-such.yaml"]) == 2
    assert main(["report", "no-such-run"]) == 4
    assert main(["inspect", "no-such-run"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_unreachable_judge(place: Path, refusal: Refusal) -> None:
    (place / "constitution.txt").write_text("Be brief.\n")
    options = "{endpoint: http://127.0.0.1:9/v1, model: judge, principles: constitution.txt}"
    code, text = refusal(f"rewards=[math, {{name: judge, options: {options}}}]")
    assert code == 6
    assert "the judge's endpoint http://127.0.0.1:9/v1 cannot be reached" in text
    code, text = refusal(f"rewards=[{{name: judge, options: {options.replace('.txt', '.md')}}}]")
    assert code == 6
    assert "the principles 'constitution.md' cannot be read" in text
