"""Tests of `volley audit` on data with known faults, against counts by hand, and on real solutions."""

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from volley.cluster.cli.main import main
from volley.cluster.data_tools.audit import audit, parse_columns
from volley.cluster.data_tools.audit_checks import KTO_RATIO, balance, weight_range
from volley.cluster.data_tools.audit_lengths import length_gap
from volley.cluster.data_tools.audit_report import Finding
from volley.cluster.data_tools.audit_table import normalise
from volley.cluster.data_tools.init_recipe import propose
from volley.cluster.recipe.config import load_recipe
from volley.cluster.recipe.prepare import prepare
from volley.rollout.errors import ConfigError, DataError


def written(tmp_path: Path, rows: Sequence[dict[str, Any]], name: str = "data.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def found(data: str, **options: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in audit(data, **options)[0]}


def pair(i: int, chosen: str = "", rejected: str = "", prompt: str = "") -> dict[str, Any]:
    return {
        "prompt": prompt or f"What is {i} + 1?",
        "chosen": chosen or f"It is {i + 1}.",
        "rejected": rejected or f"It is {i + 3}.",
    }


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


CLEAN = [pair(i) for i in range(200)]


def test_clean_pairs_pass_all_checks(tmp_path: Path) -> None:
    findings, table = audit(written(tmp_path, CLEAN))
    assert table.kind == "pairs"
    assert {finding.state for finding in findings} == {"ok"}
    assert all(not finding.fix for finding in findings)
    assert "supported methods: dpo, ipo, simpo, orpo; with fewer than 10,000 pairs IPO" in findings[0].found


@pytest.mark.parametrize(
    ("rows", "name", "state", "number", "place"),
    [
        ([pair(0, "same", "same ")], "tied pairs", "fail", 1, 201),
        ([pair(0, "The same", "the same.")], "nearly tied pairs", "warn", 1, 201),
        ([pair(7, "It is 10.", "It is 8.")], "contradictory pairs", "warn", 2, 8),
        ([pair(0, chosen=" ")], "empty chosen", "fail", 1, 201),
        ([pair(0) | {"rejected": assistant("")}], "empty rejected", "fail", 1, 201),
        ([pair(0) | {"chosen": None}, pair(0) | {"rejected": 3}], "readable", "fail", 2, 201),
        ([pair(0) | {"chosen": [*user("a"), *user("b")]}], "readable", "fail", 1, 201),
    ],
)
def test_faults_of_pairs_are_found(
    tmp_path: Path, rows: list[dict[str, Any]], name: str, state: str, number: int, place: int
) -> None:
    finding = found(written(tmp_path, CLEAN + rows))[name]
    assert (finding.state, finding.numbers["rows"]) == (state, number)
    assert f"data.jsonl:{place}" in finding.found
    assert finding.fix
    assert "\n" not in finding.found + finding.fix


def test_conversations_give_the_same_findings_as_plain_pairs(tmp_path: Path) -> None:
    """Full conversations, responses as messages, and plain text are equivalent."""
    plain = [*CLEAN, pair(3, "It is 6.", "It is 4."), pair(0, "x", "x"), CLEAN[5]]
    answers = [row | {side: assistant(row[side]) for side in ("chosen", "rejected")} for row in plain]
    answers = [row | {"prompt": user(row["prompt"])} for row in answers]
    whole = [{side: user(row["prompt"]) + assistant(row[side]) for side in ("chosen", "rejected")} for row in plain]
    first = audit(written(tmp_path, plain))[0]
    assert audit(written(tmp_path, answers))[0] == first
    assert audit(written(tmp_path, whole))[0] == first
    assert [finding.name for finding in first if finding.state != "ok"] == [
        "duplicate rows",
        "tied pairs",
        "contradictory pairs",
    ]


def test_exact_and_near_duplicates_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a  colour.", "completion": "Red"},
        {"prompt": "name a colour", "completion": "red."},
        {"prompt": "Name a  colour.", "completion": "Red"},
        {"prompt": "What is 2-2?", "completion": "0"},
        {"prompt": "What is 2+2?", "completion": "4"},
    ]
    findings = found(written(tmp_path, rows))
    assert findings["duplicate rows"].numbers == {"exact": 1, "near": 2}
    assert findings["prompts"].numbers == {"unique": 4, "near_unique": 3}
    assert findings["prompts"].state == "warn"
    assert "few" in findings["rows"].fix


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("“Why?”  he\nasked", "why he asked", True), ("ﬁve", "five", True), ("-3", "3", False), ("a - b", "a b", False)],
)
def test_normalise(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) == same


@pytest.mark.parametrize(("wanted", "counts"), [("undesirable_weight", (900, 100)), ("desirable_weight", (300, 700))])
def test_weight_range_matches_the_paper(wanted: str, counts: tuple[int, int]) -> None:
    key, low, high = weight_range(*counts)
    assert key == wanted
    for weight, end in ((low, KTO_RATIO), (high, KTO_RATIO)):
        ratio = counts[0] * weight / counts[1] if key == "desirable_weight" else counts[0] / (counts[1] * weight)
        assert end[0] - 1e-9 <= ratio <= end[1] + 1e-9
    assert low < high


@pytest.mark.parametrize(
    ("counts", "state", "message"),
    [
        ((60, 40), "ok", "60.0% desirable"),
        ((49, 51), "warn", "outside the recommended 50 to 70 %"),
        ((80, 20), "warn", "outside the recommended 50 to 70 %"),
        ((91, 9), "warn", "strongly imbalanced"),
        ((9, 91), "warn", "strongly imbalanced"),
        ((10, 0), "fail", "one class is missing"),
    ],
)
def test_class_balance(counts: tuple[int, int], state: str, message: str) -> None:
    finding = balance(*counts)
    assert (finding.state, message in finding.found) == (state, True)
    assert ("weight between" in finding.fix) == (state == "warn")


def test_labels_are_checked(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i % 5 < 3} for i in range(200)]
    rows += [{"prompt": "p0", "completion": "c0", "label": False}, {"prompt": "p", "completion": "c", "label": "true"}]
    findings = found(written(tmp_path, rows))
    assert findings["contradictory labels"].numbers == {"rows": 2}
    assert findings["duplicate rows"].state == "ok"
    assert (findings["labels"].state, findings["labels"].numbers) == ("fail", {"rows": 1})
    assert "such as 'true', the first at" in findings["labels"].found
    assert findings["class balance"].numbers["desirable_share"] == 120 / 201


def test_length_gap_predicts_the_effect_of_dpo() -> None:
    longer = length_gap([20, 30, 44] * 50, [10, 10, 41] * 50, "tokens")
    gaps = [10, 20, 3] * 50
    mean = sum(gaps) / 150
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 150)
    assert longer.numbers["effect_size"] == pytest.approx(mean / spread)
    assert (longer.numbers["longer_share"], longer.numbers["gap_median"]) == (1.0, 10)
    assert (longer.state, "DPO will make responses longer" in longer.found, "SimPO" in longer.fix) == (
        "warn",
        True,
        True,
    )
    shorter = length_gap([10, 10, 41] * 50, [20, 30, 44] * 50, "tokens")
    assert (shorter.state, "DPO will make responses shorter" in shorter.found) == ("warn", True)
    assert length_gap([9, 10] * 50, [10, 9] * 50, "tokens").state == "ok"
    assert length_gap([9, 10, 9], [10, 9, 8], "tokens").state == "ok"
    assert length_gap([8] * 100, [8] * 100, "tokens").numbers["effect_size"] == 0.0


def test_exact_and_near_leakage_is_found(tmp_path: Path) -> None:
    test = [{"question": text, "answer": "1"} for text in ("What is 3 + 1?", "what is 4 + 1", "What is 3 - 1?")]
    finding = found(written(tmp_path, CLEAN), test=written(tmp_path, test, "test.jsonl"))["leakage"]
    assert finding.numbers == {"test_rows": 3, "exact": 1, "near": 2}
    assert (finding.state, "test.jsonl:1" in finding.found) == ("fail", True)
    clean = found(written(tmp_path, CLEAN), test=written(tmp_path, test[2:], "test.jsonl"))["leakage"]
    assert clean.state == "ok"


def test_contradictory_answers_are_found(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(100)]
    rows += [{"question": "what is 3", "answer": "4"}, {"question": "What is 5?", "answer": "5"}]
    findings = found(written(tmp_path, rows))
    assert findings["contradictory answers"].numbers == {"rows": 2}
    assert "data.jsonl:4" in findings["contradictory answers"].found


def test_truncation_counts_tokens(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from volley.rollout.model_files import inspect_model

    limit = inspect_model(tiny_model).max_length
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    one = len(tokenizer("1" * 100, add_special_tokens=False)["input_ids"])
    assert one == 100
    rows = [{"prompt": "1+1=", "completion": "1" * length} for length in (5, limit - 5, limit - 4, limit + 50)]
    finding = found(written(tmp_path, rows), model=str(tiny_model))["truncation"]
    assert finding.numbers == {"limit": limit, "prompt_limit": limit - 1, "rows": 2, "tokens_max": limit + 55}
    assert (finding.state, "data.jsonl:3" in finding.found) == ("warn", True)
    sampled = written(tmp_path, [{"prompt": "1" * length, "answer": "1"} for length in (128, 129)], "sampled.jsonl")
    finding = found(sampled, model=str(tiny_model))["truncation"]
    assert (finding.numbers["prompt_limit"], finding.numbers["rows"]) == (limit // 2, 1)
    assert "sampled.jsonl:2" in finding.found
    without = found(written(tmp_path, rows))["truncation"]
    assert without.numbers == {"characters_max": limit + 54}
    assert "not checked" in without.found


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    rows = [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in CLEAN]
    data = written(tmp_path, rows)
    with pytest.raises(DataError, match=r"no prompt column found among ask, good, bad"):
        audit(data)
    columns = parse_columns(["prompt=ask", "chosen=good", "rejected=bad"])
    assert {finding.state for finding in audit(data, columns=columns)[0]} == {"ok"}
    with pytest.raises(DataError, match="there is no column 'worse'; available columns: ask, good, bad"):
        audit(data, columns={"rejected": "worse"})
    with pytest.raises(DataError, match="'question' is not a column that Volley reads"):
        audit(data, columns={"question": "ask"})
    with pytest.raises(ConfigError, match="expected VOLLEY_NAME=YOUR_NAME"):
        parse_columns(["prompt"])


def test_command_prints_findings_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = written(tmp_path, CLEAN), written(tmp_path, [*CLEAN, pair(0, "x", "x")], "bad.jsonl")
    assert main(["audit", good]) == 0
    assert main(["audit", bad]) == 1
    printed = capsys.readouterr().out
    assert "fail  tied pairs" in printed
    assert "-> remove them" in printed
    assert printed.endswith("1 fail, 7 ok\n")
    assert main(["audit", bad, "--json", "--test", good, "--columns", "prompt=prompt"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["kind"], content["rows"]) == ("pairs", 201)
    assert [finding["name"] for finding in content["findings"] if finding["state"] == "fail"] == [
        "tied pairs",
        "leakage",
    ]
    assert main(["audit", str(tmp_path / "none.jsonl")]) == 3
    assert main(["audit", good, "--model", "no/such-model"]) == 5


def test_real_solutions(gsm8k_each: Path, tmp_path: Path) -> None:
    """Pairs of right and wrong solutions to the same question, and labels, as published by GSM8K's authors."""
    lines = [json.loads(line) for line in (gsm8k_each / "model_solutions.jsonl").read_text().splitlines()]
    pairs, labels = [], []
    for line in lines:
        solutions = [value for value in line.values() if isinstance(value, dict)]
        labels += [
            {"prompt": line["question"], "completion": each["solution"], "label": each["is_correct"]}
            for each in solutions
        ]
        right = [each["solution"] for each in solutions if each["is_correct"]]
        wrong = [each["solution"] for each in solutions if not each["is_correct"]]
        pairs += [
            {"prompt": line["question"], "chosen": one, "rejected": other}
            for one, other in itertools.product(right, wrong)
        ]
    findings = found(written(tmp_path, pairs), test=str(gsm8k_each / "test.jsonl"))
    assert findings["contradictory pairs"].state == "ok"
    assert findings["tied pairs"].state == "ok"
    assert findings["leakage"].state == "fail"
    assert found(written(tmp_path, labels), test=str(gsm8k_each / "train.jsonl"))["leakage"].state == "ok"
    share = sum(row["label"] for row in labels) / len(labels)
    assert found(written(tmp_path, labels))["class balance"].numbers["desirable_share"] == share


def test_many_rows_are_checked_quickly(tmp_path: Path) -> None:
    rows = [
        pair(i, f"Because of {i}, it is {i + 1}. " * 10, f"I guess that {i} is {i + 3}. " * 10) for i in range(100_000)
    ]
    data = written(tmp_path, rows)
    start = time.monotonic()
    findings, _ = audit(data)
    assert time.monotonic() - start < 60  # about 8 s on two cores; the bound catches quadratic time
    assert findings[0].numbers["rows"] == 100_000


def test_truncation_of_many_long_rows_is_estimated(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volley.cluster.data_tools.audit_lengths.MAX_CANDIDATES", 100)
    rows = [{"prompt": "1+1=", "completion": "1" * (300 if i % 3 else 253)} for i in range(1000)]
    finding = found(written(tmp_path, rows), model=str(tiny_model))["truncation"]
    assert "(estimated from 100)" in finding.found
    assert finding.numbers["rows"] == pytest.approx(1000, rel=0.02)
    rows = [{"prompt": "1+1=", "completion": "1" * (300 if i % 3 else 250)} for i in range(1000)]
    finding = found(written(tmp_path, rows), model=str(tiny_model))["truncation"]
    assert finding.numbers["rows"] == pytest.approx(667, rel=0.05)


def test_truncation_counts_the_rows_that_a_run_drops(tmp_path: Path, tiny_model: Path) -> None:
    lengths = [(p, c) for p in (1, 100, 127, 128, 129, 254, 255, 256, 300) for c in (1, 126, 127, 128, 129, 260)]
    for name, rows in {
        "pairs": [{"prompt": "1" * p, "chosen": "2" * c, "rejected": "3" * (c // 2 + 1)} for p, c in lengths],
        "answers": [{"prompt": "1" * p, "answer": str(c)} for p, c in lengths],
    }.items():
        data, recipe = written(tmp_path, rows, f"{name}.jsonl"), tmp_path / f"{name}.yaml"
        recipe.write_text(propose(data, str(tiny_model)))
        parts = prepare(load_recipe(str(recipe)))
        dropped = (parts.dataset or parts.prompts).num_dropped_long
        assert found(data, model=str(tiny_model))["truncation"].numbers["rows"] == dropped > 0
