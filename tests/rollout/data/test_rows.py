import datetime
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from volley.rollout.data.rows import read_rows
from volley.rollout.errors import DataError

ROWS = [{"prompt": "1+1=?", "answer": "2", "level": 1}, {"prompt": "2+2=?", "answer": "4", "level": 2}]


def write_lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def message(spec: str, columns: dict[str, str] | None = None, needed: tuple[str, ...] = ("prompt",)) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(spec, columns or {}, needed)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", *ROWS)
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1])
    ).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    write_lines(tmp_path / "files" / "train.jsonl", *ROWS)

    read = read_rows(lines, {}, ("prompt", "answer"))
    assert [dict(row) for row in read.values] == ROWS
    assert read.where(1) == f"{lines}:2"
    for spec in ("a.parquet", "saved", "splits:train", "files", "files:train"):
        other = read_rows(str(tmp_path / spec), {}, ("prompt", "answer"))
        assert [dict(row) for row in other.values] == ROWS
        assert other.fingerprint == read.fingerprint
        assert other.where(1).endswith(f"{spec} row 2")


def test_shuffled_data_set_keeps_its_order(tmp_path: Path) -> None:
    shuffled = datasets.Dataset.from_list([{"prompt": str(i)} for i in range(50)]).shuffle(seed=1)
    shuffled.save_to_disk(tmp_path / "saved")
    assert [row["prompt"] for row in read_rows(str(tmp_path / "saved"), {}, ()).values] == shuffled["prompt"][:]


def test_columns_are_renamed_and_the_others_kept(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "a.jsonl", {"question": "q", "prompt": "unused", "solution": "s", "id": 7})
    rows = read_rows(spec, {"prompt": "question", "answer": "solution", "completion": "solution"}, ("prompt",))
    assert rows.values == [{"prompt": "q", "answer": "s", "completion": "s", "id": 7}]


def test_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n   \n{"prompt": "b\xe2\x80\xa8c"}')
    rows = read_rows(str(path), {}, ("prompt",))
    assert [row["prompt"] for row in rows.values] == ["a", "b\u2028c"]
    assert rows.where(1) == f"{path}:4"


def test_parquet_values_without_json_form_become_text(tmp_path: Path) -> None:
    row = {"prompt": "p", "day": datetime.date(2024, 2, 29), "messages": [{"role": "user", "content": "x"}]}
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    read = read_rows(str(tmp_path / "a.parquet"), {}, ("prompt",)).values[0]
    assert read == {**row, "day": "2024-02-29"}
    json.dumps(read)


def test_parquet_below_a_directory_that_looks_like_a_partition(tmp_path: Path) -> None:
    (tmp_path / "level=3").mkdir()
    path = tmp_path / "level=3" / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{"prompt": "p"}]), path)
    assert read_rows(str(path), {}, ()).values == [{"prompt": "p"}]


def test_fingerprint_follows_content_order_and_mapping(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "a.jsonl", *ROWS)
    spaced = write_lines(
        tmp_path / "b.jsonl", *(json.dumps(row, indent=None, separators=(" ,", " : ")) for row in ROWS)
    )
    turned = write_lines(tmp_path / "c.jsonl", *reversed(ROWS))
    fingerprint = read_rows(spec, {}, ()).fingerprint
    assert len(fingerprint) == hashlib.sha256().digest_size * 2
    assert read_rows(spaced, {}, ()).fingerprint == fingerprint
    assert read_rows(turned, {}, ()).fingerprint != fingerprint
    assert read_rows(spec, {"answer": "level"}, ()).fingerprint != fingerprint


def test_gsm8k_is_read_whole(gsm8k_each: Path) -> None:
    for name, sizes in (("train", (64, 7473)), ("test", (40, 1319))):
        rows = read_rows(str(gsm8k_each / f"{name}.jsonl"), {"prompt": "question"}, ("prompt", "answer"))
        assert len(rows) in sizes
        assert all("####" in row["answer"] for row in rows.values)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "broken JSON"),
        ("[1, 2]", "holds a JSON list"),
        ("[" * 100_000, "broken JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "broken JSON"),
        ('{"prompt": null}', "'prompt' is null"),
        ('{"prompt": "\\ud83d"}', "half a character"),
        ('{"question": "a", "answer": "b"}', "the columns are: question, answer"),
        ("{}", "the columns are: none"),
    ],
)
def test_errors_name_the_broken_line(tmp_path: Path, line: str, problem: str) -> None:
    text = message(write_lines(tmp_path / "a.jsonl", {"prompt": "fine"}, "", line, {"prompt": "fine"}))
    assert text.startswith(f"{tmp_path}/a.jsonl:3: ")
    assert problem in text


def test_whole_characters_as_escapes_are_fine(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "a.jsonl", '{"prompt": "\\ud83d\\ude00"}')
    assert read_rows(spec, {}, ("prompt",)).values[0]["prompt"] == "\U0001f600"


def test_missing_column_says_how_to_map_it(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "a.jsonl", {"question": "a"})
    assert "data.columns: {prompt: COLUMN}" in message(spec)
    assert "no column 'qestion' for the prompt" in message(spec, {"prompt": "qestion"})


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    assert "a.jsonl:1: the line is not UTF-8" in message(str(tmp_path / "a.jsonl"))


def test_null_and_missing_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{"prompt": "a"}, {"prompt": None}]), path)
    assert message(str(path)).startswith(f"{path} row 2: 'prompt' is null")
    assert "the columns are: prompt" in message(str(path), needed=("answer",))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pa.parquet.write_table(pa.Table.from_pylist([], schema=pa.schema([("prompt", pa.string())])), path)
    else:
        path.write_text("\n")
    assert "it has no rows" in message(str(path))


def test_missing_files(tmp_path: Path) -> None:
    assert "no such file" in message(str(tmp_path / "a.jsonl"))
    assert "no such file" in message("train.parquet")
    assert "no such file or directory" in message(str(tmp_path / "nothing"))
    assert "no such file or directory" in message("./nothing:train")


def test_unsupported_files(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    assert "not a readable Parquet file" in message(str(tmp_path / "a.parquet"))
    (tmp_path / "a.csv").write_text("prompt\na\n")
    assert "files of type '.csv' are not supported" in message(str(tmp_path / "a.csv"))
    (tmp_path / "empty").mkdir()
    assert "is not a readable data set" in message(str(tmp_path / "empty"))


def test_a_split_must_be_named(tmp_path: Path) -> None:
    some = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=some, test=some).save_to_disk(tmp_path / "d")
    some.save_to_disk(tmp_path / "one")
    several = message(f"{tmp_path}/d")
    assert "the splits are train, test" in several
    assert f"'{tmp_path}/d:train'" in several
    wrong = message(f"{tmp_path}/d:valid")
    assert "there is no split 'valid'" in wrong
    assert f"'{tmp_path}/d:train'" in wrong
    assert "has no splits" in message(f"{tmp_path}/one:train")


def test_an_unreachable_hub_gives_one_sentence() -> None:
    program = """
from volley.rollout.errors import DataError
from volley.rollout.data.rows import read_rows
try:
    read_rows("no-one/no-such-data/main:train", {}, ("prompt",))
except DataError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("data: 'no-one/no-such-data/main:train' is neither a local file or directory")
    assert done.stdout.count("\n") == 1
