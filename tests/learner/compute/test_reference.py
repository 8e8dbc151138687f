"""The table of a recorded reference: what it is asked for, and several runs at one file."""

import threading
from collections.abc import Sequence
from pathlib import Path

from volley.learner.compute.reference import key_of, read_table, record, write_table
from volley.learner.signals.batch import Row


def row(number: int) -> Row:
    return Row((number,), (number, 1), (0.0, 0.0), 0)


class Policy:
    """Log-probs that tell rows apart, and which rows it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, rows: Sequence[Row]) -> list[list[float]]:
        self.asked += [each.prompt_ids[0] for each in rows]
        return [[-float(each.prompt_ids[0]), -0.5] for each in rows]


def test_another_order_reads_the_table_and_computes_only_what_is_new(tmp_path: Path) -> None:
    file, policy = tmp_path / "table.parquet", Policy()
    record([row(n) for n in (1, 2, 3, 2)], file, policy, lambda known: known, True)
    assert policy.asked == [1, 2, 3]
    again = Policy()
    record([row(n) for n in (3, 5, 1)], file, again, lambda known: known, True)
    assert again.asked == [5]
    table = read_table(file)
    assert {n: table[key_of(row(n))] for n in (1, 2, 3, 5)} == {n: [-float(n), -0.5] for n in (1, 2, 3, 5)}
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_runs_that_write_one_table_at_once_leave_a_whole_one(tmp_path: Path) -> None:
    file, failures = tmp_path / "table.parquet", list[Exception]()
    tables = [{key_of(row(n)): [float(n)] for n in range(first, first + 300)} for first in (0, 1000)]
    start = threading.Barrier(2)

    def write(table: dict[bytes, list[float]]) -> None:
        start.wait()
        try:
            for _ in range(30):
                write_table(file, table)
        except Exception as failure:
            failures.append(failure)

    writers = [threading.Thread(target=write, args=(table,)) for table in tables]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    assert read_table(file) in tables
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
