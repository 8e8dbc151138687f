"""`volley audit`: find problems in a data set, predict their effect on training, and say how to fix them.

Rows are read and compared in seconds; nothing is trained or sampled. With a model, lengths are counted in tokens.
"""

from collections.abc import Mapping, Sequence

from volley.cluster.data_tools.audit_checks import (
    check_answers,
    check_duplicates,
    check_empty,
    check_labels,
    check_pairs,
    check_rows,
    leakage,
)
from volley.cluster.data_tools.audit_lengths import check_lengths
from volley.cluster.data_tools.audit_report import Finding
from volley.cluster.data_tools.audit_table import Table, make_table
from volley.cluster.data_tools.data_kind import find_kind
from volley.rollout.data.rows import read_rows
from volley.rollout.errors import ConfigError


def audit(
    data: str, model: str = "", test: str = "", columns: Mapping[str, str] | None = None
) -> tuple[list[Finding], Table]:
    """Check the data set `data`, in any form that `read_rows` accepts.

    model: a model directory or hub name, to count tokens.
    test: the held-out data set, to check for leakage.
    columns: Volley's name -> the data's name, for columns that are not recognized.

    Raises `DataError` for data that cannot be read or has no prompts, and `ModelError` for a broken model.
    """
    table = _table(data, columns or {})
    findings = [*check_rows(table)]
    if len(table):
        findings += [*check_empty(table), *check_duplicates(table), *check_pairs(table), *check_labels(table)]
        findings += [*check_answers(table), *check_lengths(table, model)]
        if test:
            findings.append(leakage(table, _table(test, columns or {})))
    return findings, table


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Parse `["prompt=question"]` to Volley's name -> the data's name. Raises `ConfigError`."""
    columns = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"--columns {pair}: expected VOLLEY_NAME=YOUR_NAME, for example prompt=question.")
        columns[ours] = theirs
    return columns


def _table(data: str, columns: Mapping[str, str]) -> Table:
    rows = read_rows(data, {}, ())
    return make_table(rows, find_kind(rows, columns))
