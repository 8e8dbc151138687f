"""Tests of `volley verify` with real scoring processes, on files with known verdicts and on real solutions."""

import json
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from volley.cluster.cli.main import main
from volley.cluster.data_tools import verify as verify_module
from volley.cluster.data_tools.verify import Columns, parse_options, recipe_term, verifier_term, verify_file
from volley.cluster.data_tools.verify_tally import MAX_BUCKETS, NUM_SLOWEST, Buckets, Tally
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rollout.data.parquet import write_groups
from volley.rollout.errors import ConfigError, DataError, RewardError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids

BOTH = ScorerConfig(workers=2, timeout_s=1.0)
ROWS = [
    {"response": r"so \boxed{18}", "answer": "18"},
    {"response": r"so \boxed{17}", "answer": "18"},
    {"response": "Hm.\nI do not know, it may be 18 or so.", "answer": "18"},
    {"response": r"\boxed{18}", "answer": r"\frac{1}{"},
    {"response": r"\boxed{18}", "answer": r"\frac{2}{"},
    {"response": None, "answer": "18"},
    {"response": r"\boxed{\frac{\sqrt{2}}{2}}", "answer": r"\frac{1}{\sqrt{2}}"},
]


def written(tmp_path: Path, rows: Sequence[dict[str, Any]], name: str = "responses.jsonl") -> str:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tallied(data: str, *names: str, **options: Any) -> Tally:
    terms = [verifier_term(name) for name in names or ("math",)]
    return verify_file(data, terms, Columns(), config=BOTH, **options)


def counts(tally: Tally, place: int = 0) -> dict[str, int]:
    return {kind: number for kind, number in tally.verifiers[place].counts.items() if number}


@pytest.mark.parametrize("name", ["responses.jsonl", "responses.parquet"])
def test_every_outcome_is_counted(tmp_path: Path, name: str) -> None:
    data = written(tmp_path, ROWS, name)
    tally = tallied(data)
    assert counts(tally) == {"right": 2, "wrong": 1, "no answer": 1, "unscorable": 3}
    text = "\n".join(tally.lines(data))
    assert "7 responses in" in text
    place = "responses.jsonl:4" if name.endswith("jsonl") else "responses.parquet row 4"
    assert place in text
    reasons = [(key, bucket.count) for key, bucket in tally.verifiers[0].reasons.most_frequent()]
    assert reasons == [
        ("the gold answer ... cannot be read as a number, a formula or words", 2),
        ("the response is not text", 1),
    ]


def test_command_prints_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", written(tmp_path, ROWS)]) == 0
    out = capfd.readouterr().out.splitlines()
    table = {line.rsplit(maxsplit=1)[0]: line.rsplit(maxsplit=1)[1] for line in out[3:8]}
    assert table == {"right": "2", "wrong": "1", "no answer": "1", "unscorable": "3", "time-out": "0"}


def test_verifier_column_selects_the_verifier(tmp_path: Path) -> None:
    rows = [
        {"response": r"\boxed{2/4}", "answer": "1/2"} | ({"verifier": name} if name else {})
        for name in ("", "math", "exact_words", "maths")
    ]
    tally = tallied(written(tmp_path, rows), "verifier")
    assert counts(tally) == {"right": 2, "wrong": 1, "unscorable": 1}
    assert counts(tallied(written(tmp_path, rows), "exact_words")) == {"wrong": 4}


def test_time_outs_affect_only_their_row(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n"
        "def judge(prompt, response, answer, **row):\n"
        "    if 'hang' in response: time.sleep(3600)\n"
        "    if 'slow' in response: time.sleep(0.2)\n"
        "    return 0.5 if 'half' in response else float(answer in response)\n"
    )
    rows = [{"response": f"it is {i}", "answer": str(i)} for i in range(50)]
    rows[7]["response"], rows[20]["response"], rows[30]["response"] = "hang", "slow 20", "half"
    data = written(tmp_path, rows)
    tally = tallied(data, f"{tmp_path}/mine.py:judge")
    assert counts(tally) == {"right": 48, "partly right": 1, "time-out": 1}
    slowest = sorted(tally.verifiers[0].slowest, reverse=True)
    assert [entry[2] for entry in slowest[:2]] == [f"{data}:8", f"{data}:21"]
    assert 1.0 <= slowest[0][0] < 3.0
    assert 0.2 <= slowest[1][0] < 1.0
    assert len(slowest) == NUM_SLOWEST


def test_comparison_with_math_verify(tmp_path: Path) -> None:
    rows = [{"response": rf"\boxed{{{i}\text{{ cm}}}}", "answer": rf"{i}\text{{ m}}"} for i in range(1, 6)]
    rows += [{"response": r"\boxed{\frac{2}{4}}", "answer": r"\frac{1}{2}"}, {"response": "9", "answer": "9"}]
    data = written(tmp_path, rows)
    tally = tallied(data, "math", "math_verify")
    assert counts(tally) == {"right": 2, "wrong": 5}
    assert counts(tally, 1) == {"right": 7}
    ((kind, bucket),) = tally.disagreements.most_frequent()
    assert kind == ("wrong", "right", r"'0\\text{ m}'", r"'0\\text{ cm}'")
    assert (bucket.count, len(bucket.examples)) == (5, 3)
    assert bucket.examples[0] == rf"{data}:1: answer '1\\text{{ m}}', given '1\\text{{ cm}}'"
    assert "math and math_verify disagree on 5 of 7 responses" in "\n".join(tally.lines(data))


def test_missing_math_verify_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; install it with pip install math-verify"):
        verifier_term("math_verify")


def test_agreement_with_labels_is_counted(tmp_path: Path) -> None:
    labels = [True, True, 0, True, None, False, "yes"]
    rows = [row | {"is_correct": label} for row, label in zip(ROWS, labels, strict=True)]
    data = written(tmp_path, rows)
    tally = tallied(data)
    assert (tally.num_labelled, tally.num_bad_labels) == (5, 2)
    assert dict(tally.verifiers[0].labels) == {"scored": 3, "agree": 2}
    text = "\n".join(tally.lines(data))
    assert "math agrees with 2 of 3 labels, 66.67%; 2 not scored; 2 labels are neither true nor false" in text
    assert f"{data}:2: answer '18', given '17'" in text


def test_verdicts_are_written_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    data = written(tmp_path, ROWS)
    verify_file(data, [verifier_term("math")], Columns(), str(out), BOTH)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["place"] for record in records] == [f"{data}:{line}" for line in range(1, 8)]
    said = [record["verdicts"]["math"] for record in records]
    assert [each["verdict"] for each in said] == [
        "right", "wrong", "no answer", "unscorable", "unscorable", "unscorable", "right",
    ]  # fmt: skip
    assert (said[0]["value"], said[0]["given"], said[3]["value"]) == (1.0, "18", None)
    assert "cannot be read" in said[3]["reason"]
    with pytest.raises(ConfigError, match="already exists; choose another path"):
        verify_file(data, [verifier_term("math")], Columns(), str(out), BOTH)


def test_broken_line_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"response": "1", "answer": "1"}\n{"response": \n')
    with pytest.raises(DataError, match=r"data\.jsonl:2: broken JSON"):
        verify_file(str(path), [verifier_term("math")], Columns(), str(tmp_path / "out.jsonl"), BOTH)
    assert [each.name for each in tmp_path.iterdir()] == ["data.jsonl"]


def test_samples_of_a_run(tmp_path: Path) -> None:
    prompt = Prompt(0, 0, "question", as_token_ids((1, 2)), "1/2", {"tolerance": 0.1})
    texts = (r"\boxed{0.55}", "The answer is 0.5")
    reasons = ("stop", "length")
    completions = tuple(
        Completion.single((1, 2), (0.0, 0.0), text, reason, 0, 0) for text, reason in zip(texts, reasons, strict=True)
    )
    scores = (Score(1.0, {"math": 1.0}), Score(0.0, {"math": 0.0}))
    (tmp_path / "rollouts").mkdir()
    for step in (1, 2):
        write_groups(tmp_path / "rollouts" / f"step-00000{step}.parquet", [ScoredGroup(prompt, completions, scores)], 1)
    tally = tallied(str(tmp_path / "rollouts" / "step-000001.parquet"))
    assert counts(tally) == {"right": 1, "no answer": 1}  # the second one may be truncated
    assert counts(tallied(str(tmp_path))) == {"right": 2, "no answer": 2}


def test_column_names_can_be_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path, [{"text": "5", "gold": 5, "fine": True}])
    names = ["--response", "text", "--answer", "gold", "--label", "fine"]
    assert main(["verify", data, "--json", *names]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["verifiers"][0]["counts"]["right"] == 1
    assert found["verifiers"][0]["labels"] == {"scored": 1, "agree": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.jsonl"], 3, "missing.jsonl: no such file"),
        (["DATA", "--response", "text"], 3, "there is no column 'text' for the response; available columns: respo"),
        (["DATA", "--answer", "gold"], 3, "no column 'gold' for the answer"),
        (["DATA", "--label", "gold"], 3, "no column 'gold' for the label"),
        (["EMPTY"], 3, "the file has no rows"),
        (["DATA", "--verifier", "maths"], 6, "reward 'maths' is not built in; did you mean 'math'?"),
        (["DATA", "--verifier", "judge"], 2, "'judge' scores all responses to a prompt together"),
        (["DATA", "--verifier", "gone.py:judge"], 6, "gone.py does not exist"),
        (["DATA", "--verifier", "length", "--options", "max_tokens=9"], 3, "'length' needs token counts; add a column"),
        (["DATA", "--options", "tolerance"], 2, "--options tolerance: expected NAME=VALUE"),
        (["DATA", "--verifier", "math", "--against", "math"], 2, "--against math: this is the same verifier"),
        (["DATA", "--timeout", "0"], 2, "timeout"),
        (["DATA", "--out", "no/such/place.jsonl"], 2, "--out no/such/place.jsonl: cannot write this file"),
        (["DATA", "--recipe", "gone.yaml"], 2, "gone.yaml"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    places = {"DATA": written(tmp_path, ROWS), "EMPTY": str(tmp_path / "empty.jsonl")}
    assert main(["verify", *(places.get(each, each) for each in arguments)]) == code
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_recipe_term_selects_by_label_or_accuracy() -> None:
    terms = [RewardConfig("think_format"), RewardConfig("mine.py:judge", label="mine"), RewardConfig("math")]
    assert recipe_term(terms).name == "math"
    assert recipe_term(terms, "mine").name == "mine.py:judge"
    assert recipe_term([terms[0], RewardConfig("mine.py:judge", accuracy=True), terms[2]]).name == "mine.py:judge"
    with pytest.raises(ConfigError, match=r"no reward labelled 'yours'.*available labels: think_format, mine, math"):
        recipe_term(terms, "yours")


def test_command_uses_the_verifier_of_a_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def judge(prompt, response, answer, *, word): return float(word in response)\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: a\nmodel: none\nsteps: 1\ndata: {train: none}\nrewards:\n  - {name: math, options: {tolerance: 1}}\n"
        f"  - {{name: '{tmp_path}/mine.py:judge', label: mine, options: {{word: so}}}}\n"
    )
    data = written(tmp_path, ROWS[:2])
    for arguments, name, right in (([], "math", 2), (["--verifier", "mine"], "mine", 2)):
        assert main(["verify", data, "--recipe", str(recipe), "--json", *arguments]) == 0
        (verifier,) = json.loads(capfd.readouterr().out)["verifiers"]
        assert (verifier["name"], verifier["counts"]["right"]) == (name, right)
    assert main(["verify", data, "--recipe", str(recipe), "--options", "tolerance=1"]) == 2
    assert "--options cannot be combined with --recipe" in capfd.readouterr().err


def test_options_have_recipe_syntax(tmp_path: Path) -> None:
    assert parse_options(["tolerance=0.5", "graded=true"]) == {"tolerance": 0.5, "graded": True}
    with pytest.raises(RewardError, match="no option"):
        verify_file(written(tmp_path, ROWS), [verifier_term("think_format", {"grade": 1})], Columns())


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With distinct answers and disagreements, only counts and examples are kept."""
    (tmp_path / "no.py").write_text("def judge(prompt, response, answer, **row): return 0.0\n")
    monkeypatch.setattr(verify_module, "WINDOW", 64)

    def peak(number: int) -> int:
        path = tmp_path / f"{number}.jsonl"
        with path.open("w") as file:
            for i in range(number):
                file.write(json.dumps({"response": f"{'x' * 5000} #### {i}", "answer": str(i)}) + "\n")
        tracemalloc.start()
        tally = verify_file(str(path), [verifier_term("math"), verifier_term(f"{tmp_path}/no.py:judge")], Columns())
        assert counts(tally) == {"right": number}
        assert tally.disagreements.total == number
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(3_000) < peak(300) + 2_000_000  # 2,700 more rows have 13 MB of text


def test_number_of_buckets_is_bounded() -> None:
    buckets = Buckets()
    for i in range(MAX_BUCKETS + 10):
        buckets.add(i, "example")
        buckets.add(0, "example")
    assert len(buckets.buckets) == MAX_BUCKETS
    assert (buckets.num_others, buckets.total) == (10, 2 * (MAX_BUCKETS + 10))


def test_real_solutions(gsm8k_each: Path, tmp_path: Path) -> None:
    rows = []
    for line in (gsm8k_each / "model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        answer = row["ground_truth"].rpartition("A: ")[2]
        solutions = [value for value in row.values() if isinstance(value, dict)]
        rows += [{"response": each["solution"], "answer": answer, "label": each["is_correct"]} for each in solutions]
    tally = tallied(written(tmp_path, rows))
    assert tally.num_rows == tally.num_labelled == len(rows) in (4 * 40, 4 * 660)
    assert tally.verifiers[0].labels == {"scored": len(rows), "agree": len(rows)}
