"""Reads the rows of a data set from JSONL, Parquet, a directory of `datasets`, or the Hugging Face hub.

Every row is a plain JSON object with Volley's column names (`prompt`, `answer`, `completion`) and its other columns,
and has a location (file:line) for error messages. All rows are held in memory.
"""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volley.rollout.config import COLUMNS
from volley.rollout.data.chat import with_split_conversations
from volley.rollout.errors import DataError

JSON_LINES = (".jsonl", ".ndjson", ".json")
BATCH_ROWS = 1_024


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a data set."""

    spec: str
    """Where they come from, as the user wrote it."""
    values: Sequence[Mapping[str, Any]]
    """One mapping per row."""
    lines: Sequence[int] | None
    """Line number of each row in its file; None if rows have no lines."""
    fingerprint: str
    """SHA-256 of the content of all rows under Volley's column names: equal for equal rows in equal order, whatever the
    file format."""

    def __len__(self) -> int:
        return len(self.values)

    def where(self, index: int) -> str:
        """The location of a row for the user: `file:line`, or `file row N` counted from 1."""
        return _place(self.spec, index, self.lines)


def read_rows(spec: str, columns: Mapping[str, str], needed: Sequence[str]) -> Rows:
    """Read all rows of `spec`.

    spec: a .jsonl or .parquet file, a directory that `datasets` wrote or can read, or a hub name `org/name[/config]`;
    directories and hub names may end in `:split`.
    columns: Volley's name -> the data's name; by default they are equal. One column of the data may serve several of
    Volley's. Other columns keep their names; a column that has one of Volley's names, which was mapped to another
    column, is left out. Whole conversations in chosen and rejected are split into prompt and responses (see
    `volley.rollout.data.chat`).
    needed: Volley's names of the columns that every row must have and that must not be null.

    Raises `DataError` with the location for a missing file, an unreadable row, no rows, a missing column or a null.
    """
    raw, lines = _read_raw(spec)
    sources = {name: columns.get(name, name) for name in COLUMNS}
    values: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for index, row in enumerate(raw):
        value = with_split_conversations(_rename(row, sources), _place(spec, index, lines))
        for name in needed:
            if value.get(name) is None:
                raise _missing(_place(spec, index, lines), name, sources[name], row)
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
        values.append(value)
    if not values:
        raise DataError(f"{spec}: it has no rows; a data set needs at least one.")
    return Rows(spec, values, lines, digest.hexdigest())


def column_names(spec: str, columns: Mapping[str, str]) -> set[str]:
    """The columns of the first row of `spec`, under Volley's names. Raises like `read_rows`."""
    raw, _ = _read_raw(spec)
    sources = {name: columns.get(name, name) for name in COLUMNS}
    return set(with_split_conversations(_rename(next(iter(raw), {}), sources), spec))


def stream_rows(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of `spec` (see `read_rows`) under their own column names, each with its location. Only a part of a file
    is in memory at a time. Raises `DataError` like `read_rows`."""
    raw, lines = _read_raw(spec)
    for index, row in enumerate(raw):
        yield _place(spec, index, lines), row


def _place(spec: str, index: int, lines: Sequence[int] | None) -> str:
    return f"{spec} row {index + 1}" if lines is None else f"{spec}:{lines[index]}"


def _rename(row: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    taken = {*sources.values(), *COLUMNS}
    ours = {name: row[source] for name, source in sources.items() if source in row}
    return ours | {name: value for name, value in row.items() if name not in taken}


def _missing(where: str, name: str, source: str, row: Mapping[str, Any]) -> DataError:
    if source in row:
        return DataError(f"{where}: '{source}' is null; give it a value, or remove the row.")
    there = ", ".join(map(str, row)) or "none"
    return DataError(
        f"{where}: there is no column '{source}' for the {name}; the columns are: {there}. Name the right one in the "
        f"recipe with data.columns: {{{name}: COLUMN}}."
    )


def _read_raw(spec: str) -> tuple[Iterable[dict[str, Any]], Sequence[int] | None]:
    """The rows under their own column names, and the line numbers (filled while the rows are read) if there are any."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return _read_directory(path, "", spec), None
    if path.suffix in JSON_LINES or path.suffix == ".parquet" or path.is_file():
        if not path.is_file():
            raise DataError(f"{spec}: no such file; give the path of a .jsonl or .parquet file.")
        if path.suffix == ".parquet":
            return _read_parquet(path, spec), None
        if path.suffix in JSON_LINES:
            lines = array("q")
            return _read_json_lines(path, spec, lines), lines
        raise DataError(f"{spec}: files of type '{path.suffix}' are not supported; convert it to .jsonl or .parquet.")
    name, _, split = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if Path(name).expanduser().is_dir():
        return _read_directory(Path(name).expanduser(), split, spec), None
    if not name or name.startswith((".", "/", "~")):
        raise DataError(f"{spec}: no such file or directory; check the path.")
    return _read_hub(name, split, spec), None


def _read_json_lines(path: Path, spec: str, lines: "array[int]") -> Iterator[dict[str, Any]]:
    """One object per line; blank lines are skipped."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                row = _parse_line(line, f"{spec}:{number}", "utf-8-sig" if number == 1 else "utf-8")
                lines.append(number)
                yield row


def _parse_line(line: bytes, where: str, encoding: str) -> dict[str, Any]:
    try:
        text = line.decode(encoding)
        row = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise DataError(f"{where}: the line is not UTF-8 text; save the file as UTF-8.") from None
    except UnicodeEncodeError:
        raise DataError(f"{where}: the line contains half a character (a lone \\ud...); fix its text.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}); every line must hold one JSON object.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: the line holds a JSON {type(row).__name__}; every line must hold one JSON object.")
    return row


def _read_parquet(path: Path, spec: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Opened as a file, because a path such as `day=1/x.parquet` would add columns.
        with path.open("rb") as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(BATCH_ROWS):
                yield from _plain_rows(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{spec}: not a readable Parquet file ({_first_line(error)}); write it again.") from None


def _table_rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        yield from _plain_rows(batch)


def _plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow batch; values without a JSON type (dates, bytes, decimals) become text."""
    for row in batch.to_pylist():
        yield json.loads(json.dumps(row, default=str))


def _read_directory(path: Path, split: str, spec: str) -> Iterator[dict[str, Any]]:
    import datasets

    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    # `datasets` copies data files into a cache. The rows are in memory afterwards, so the copy is not kept.
    with tempfile.TemporaryDirectory(prefix="volley-data-") as cache:
        try:
            if saved:
                loaded = datasets.load_from_disk(str(path))
            else:
                loaded = datasets.load_dataset(str(path), cache_dir=cache)
        except Exception as error:
            raise DataError(
                f"{spec}: the directory is not a readable data set ({_first_line(error)}); give a directory written by "
                "datasets.save_to_disk, a directory of .jsonl or .parquet files, or one file."
            ) from None
        yield from _table_rows(_arrow(loaded, split, spec))


def _read_hub(name: str, split: str, spec: str) -> Iterator[dict[str, Any]]:
    """Read from the hub, or with HF_HUB_OFFLINE=1 from the cache of an earlier call."""
    import datasets
    import huggingface_hub

    repository, config = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            # This fails at once, while `load_dataset` would retry for half a minute.
            huggingface_hub.HfApi().dataset_info(repository, timeout=10)
        loaded = datasets.load_dataset(repository, config or None)
    except Exception as error:
        raise DataError(
            f"data: '{spec}' is neither a local file or directory nor a data set on the Hugging Face hub "
            f"({_first_line(error)}); check the name, or give the path of a .jsonl or .parquet file."
        ) from None
    return _table_rows(_arrow(loaded, split, spec))


def _arrow(loaded: Any, split: str, spec: str) -> Any:
    """The Arrow table of one split: the named one, or the only one."""
    if isinstance(loaded, dict):
        names = list(loaded)
        if split not in names and (split or len(names) != 1):
            problem = f"there is no split '{split}'" if split else "the data set has several splits and none is named"
            raise DataError(
                f"{spec}: {problem}; the splits are {', '.join(names)}: name one as "
                f"'{spec.removesuffix(':' + split) if split else spec}:{names[0]}'."
            )
        loaded = loaded[split or names[0]]
    elif split:
        raise DataError(f"{spec}: the data set has no splits; remove ':{split}'.")
    return loaded.with_format("arrow")[:]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
