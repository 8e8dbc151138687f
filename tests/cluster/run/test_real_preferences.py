"""Correct against incorrect solutions of real models: the data and the measure of the benchmark."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from volley.cluster.cli.demo import make_model, make_tokenizer

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def solutions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import solutions

    return solutions


def test_pairs_are_of_one_question_and_no_question_is_on_both_sides(
    solutions: Any, gsm8k_each: Path, tmp_path: Path
) -> None:
    sizes = solutions.write_solutions(gsm8k_each / "model_solutions.jsonl", tmp_path, 0, 500)
    read = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in sizes
    }
    assert {name: len(rows) for name, rows in read.items()} == sizes
    num_questions = len((gsm8k_each / "model_solutions.jsonl").read_text().splitlines())
    assert min(sizes.values()) > (100 if num_questions == 660 else 5)
    for kind in solutions.KINDS:
        prompts = [{row["prompt"] for row in read[f"{kind}-{side}"]} for side in ("train", "test")]
        assert not prompts[0] & prompts[1]
    labels = {(row["prompt"], row["completion"]): row["label"] for row in read["labels-test"]}
    for pair in read["pairs-test"]:
        assert labels[pair["prompt"], pair["chosen"]] is True
        assert labels[pair["prompt"], pair["rejected"]] is False


def test_pair_accuracy_equals_one_from_summed_logprobs(solutions: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer("ab?")
    models = []
    for seed, name in enumerate(("start", "now")):
        make_model(tmp_path / name, seed, tokenizer, **solutions.SHAPE)
        models.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).double())
    sides = ("aab", "b"), ("bb", "abba"), ("ba", "ab")
    pairs = [{"prompt": "a?", "chosen": chosen, "rejected": rejected} for chosen, rejected in sides]

    def logprobs(model: Any, text: str) -> list[float]:
        ids = torch.tensor(tokenizer.convert_tokens_to_ids([*"a?", *text, "<eos>"]))
        table = model(ids[None]).logits[0].log_softmax(-1).detach()
        return [float(table[place - 1, ids[place]]) for place in range(2, len(ids))]

    start, now = ([[logprobs(model, text) for text in pair] for pair in sides] for model in models)
    ratios = [[sum(a) - sum(b) for a, b in zip(x, y, strict=True)] for x, y in zip(now, start, strict=True)]
    means = [[fmean(each) for each in pair] for pair in now]
    expected = {
        name: [float(chosen > rejected) for chosen, rejected in values]
        for name, values in {"log_ratio": ratios, "per_token": means}.items()
    }
    assert solutions.pair_accuracy(tmp_path / "now", tmp_path / "start", pairs) == expected
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    opposite = {name: [1 - value for value in values] for name, values in expected.items()}
    assert solutions.pair_accuracy(tmp_path / "now", tmp_path / "start", turned) == opposite
    assert solutions.pair_accuracy(tmp_path / "now", tmp_path / "now", pairs)["log_ratio"] == [0.5] * 3
