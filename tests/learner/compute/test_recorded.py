"""The table of a recorded reference: what is computed for it, and several runs writing one file."""

import asyncio
import threading
from pathlib import Path

import numpy as np

from tests.learner.rows import Row, row_values, rows_of, segment
from volley.learner.compute.recorded import Recorded, Table, keys_of, read_table, write_table
from volley.learner.losses import LOSSES
from volley.learner.ranks.group import LearnerGroup
from volley.learner.signals.rows import Floats, PlannedRows, Rows
from volley.rollout.types import Completion, as_token_ids


def rows(*numbers: int) -> Rows:
    return rows_of([Row((number,), (number, 1), (0.0, 0.0)) for number in numbers])


def key(number: int) -> bytes:
    return keys_of(rows(number))[0]


class Ranks:
    """Two ranks whose log-probs tell rows apart, and which rows they were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def call(self, method: str, planned: PlannedRows) -> Floats:
        assert method == "logprobs"
        mine = row_values(planned.rows)
        self.asked += [row.prompt_ids[0] for row in mine]
        return np.array([value for row in mine for value in (-row.prompt_ids[0], -0.5)], dtype=np.float32)

    def record(self, asked: Rows, file: Path) -> None:
        group = LearnerGroup([self.call, self.call], LOSSES["dpo"](), max_tokens=100)
        asyncio.run(group.record_reference(asked, file))


def test_another_order_reads_the_table_and_computes_only_what_is_new(tmp_path: Path) -> None:
    file, ranks = tmp_path / "table.parquet", Ranks()
    ranks.record(rows(1, 2, 3, 2), file)
    assert sorted(ranks.asked) == [1, 2, 3]
    again = Ranks()
    again.record(rows(3, 5, 1), file)
    assert again.asked == [5]
    table = read_table(file)
    assert {n: table[key(n)].tolist() for n in (1, 2, 3, 5)} == {n: [-float(n), -0.5] for n in (1, 2, 3, 5)}
    assert Recorded(table).logprobs_M(rows(2, 1)).tolist() == [-2, -0.5, -1, -0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_completions_with_the_same_tokens_but_other_masks_differ() -> None:
    prompt = as_token_ids([1])
    kinds = [
        Completion((segment([([2, 3, 4], True)]),), "", "stop"),
        Completion((segment([([2], True), ([3], False), ([4], True)]),), "", "stop"),
        Completion((segment([([2, 3], True)]), segment([([4], True)])), "", "stop"),
    ]
    assert len(set(keys_of(Rows.from_completions([(prompt, each) for each in kinds], 0)))) == 3


def test_concurrent_writers_of_one_table_leave_a_complete_one(tmp_path: Path) -> None:
    file, failures = tmp_path / "table.parquet", list[Exception]()
    tables = [{key(n): np.float32([n]) for n in range(first, first + 300)} for first in (0, 1000)]
    start = threading.Barrier(2)

    def write(table: Table) -> None:
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
    assert {each: values.tolist() for each, values in read_table(file).items()} in [
        {each: values.tolist() for each, values in table.items()} for table in tables
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
