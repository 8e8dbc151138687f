"""`volley verify`: run a verifier on a file of responses and answers, with the scorer that training uses.

    rows of the file -> window of rows in flight -> one scorer per verifier -> tally, in file order

Memory does not grow with the file: the tally keeps counts and a few examples. Rewards that score whole groups (such as
a judge) are not supported.
"""

import asyncio
import importlib.util
import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from volley.cluster.data_tools.verdict import Row, Verdict, make_verdict
from volley.cluster.data_tools.verify_tally import Tally
from volley.cluster.storage.directory import RunDirectory, find_run
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item
from volley.rewards.rubric.registry import BUILT_IN, GROUP_TERMS
from volley.rewards.rubric.row_verifier import VERIFIERS
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.process_scorer import ProcessScorer
from volley.rollout.data.rows import stream_rows
from volley.rollout.errors import ConfigError, DataError

WINDOW = 512
"""Maximum number of rows in flight: enough to keep all child processes busy."""
PROGRESS_INTERVAL_S = 10.0
MATH_VERIFY = "math_verify"
NEEDS_TOKENS = ("length", "length_cosine", "length_band")
"""Rewards that need the number of tokens."""
COLUMN_NAMES = {"response": ("response", "completion"), "answer": ("answer",), "label": ("is_correct", "label")}


@dataclass(frozen=True)
class Columns:
    """The file's column names. With "" the first existing name of `COLUMN_NAMES` is used."""

    response: str = ""
    answer: str = ""
    label: str = ""

    def find(self, part: str, row: Mapping[str, Any], where: str, required: bool) -> str:
        """The column of a row that holds `part`, or "". Raises `DataError` if a required column is missing."""
        given: str = getattr(self, part)
        names = (given,) if given else COLUMN_NAMES[part]
        found = next((name for name in names if name in row), "")
        if not found and (required or given):
            available = ", ".join(map(str, row)) or "none"
            raise DataError(
                f"{where}: there is no column {' or '.join(map(repr, names))} for the {part}; available columns: "
                f"{available}. Name the column with --{part}."
            )
        return found


def verifier_term(name: str, options: Mapping[str, Any] | None = None) -> RewardConfig:
    """The reward term for a verifier's name.

    The name can be a value of a row's `verifier` column, a built-in reward, `math_verify`, or a function in the form
    that recipes use. Raises `ConfigError`.
    """
    if name in GROUP_TERMS:
        raise ConfigError(f"'{name}' scores all responses to a prompt together, so it cannot verify single responses.")
    if name == MATH_VERIFY:
        if importlib.util.find_spec(MATH_VERIFY) is None:
            raise ConfigError("math_verify: the package is not installed; install it with pip install math-verify.")
        return RewardConfig(
            "volley.rewards.math.math_verify:reward", label=name, options=dict(options or {}), accuracy=True
        )
    if name in VERIFIERS:
        chosen = {"verifier": name, **(options or {})}
        return RewardConfig("verifier", label=name, options=chosen, accuracy=True)
    return RewardConfig(name, options=dict(options or {}), accuracy=True)


def recipe_term(terms: Sequence[RewardConfig], label: str = "") -> RewardConfig:
    """The recipe's reward term with a label; without a label, the term that measures accuracy. Raises `ConfigError`."""
    plain = [term for term in terms if term.name not in GROUP_TERMS]
    labels = ", ".join(term.label for term in plain) or "none"
    if label:
        chosen = [term for term in plain if term.label == label]
    else:
        chosen = [term for term in plain if term.accuracy] or [term for term in plain if term.name in VERIFIERS]
        chosen = chosen or (plain if len(plain) == 1 else [])
    if not chosen:
        problem = f"has no reward labelled '{label}'" if label else "marks no reward with accuracy: true"
        raise ConfigError(f"the recipe {problem}; select a verifier with --verifier; available labels: {labels}.")
    return replace(chosen[0], accuracy=True)


def terms_to_compare(first: RewardConfig, second: RewardConfig) -> list[RewardConfig]:
    """Two terms with different labels. Raises `ConfigError` if both are the same verifier."""
    if first.label != second.label:
        return [first, second]
    if (first.name, first.options) == (second.name, second.options):
        raise ConfigError(f"--against {second.label}: this is the same verifier; choose a different one.")
    return [replace(term, label=f"{number}:{term.name}") for number, term in enumerate((first, second), 1)]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `["tolerance=0.01"]`; values have YAML syntax as in a recipe. Raises `ConfigError`."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (name and equals):
            raise ConfigError(f"--options {pair}: expected NAME=VALUE, for example tolerance=0.01.")
    return options


def verify_file(
    spec: str,
    terms: Sequence[RewardConfig],
    columns: Columns,
    out: str = "",
    config: ScorerConfig | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Tally:
    """Score every row of a file or run with each term.

    spec: a file, or the name or directory of a run.
    terms: one verifier, or two to compare.
    out: a file for the verdicts, one JSON object per row in the order of the rows. It is created once complete.
    on_progress: called with a progress message every `PROGRESS_INTERVAL_S`.

    Raises `DataError` for an unreadable file, `ConfigError` for contradictory arguments, and `RewardError` for a term
    that cannot be loaded.
    """
    source = _stream_rows(spec)
    first = next(source, None)
    if first is None:
        raise DataError(f"{spec}: the file has no rows, so there is nothing to verify.")
    needs_answer = any(":" not in term.name and not _is_always_quick(term.name) for term in terms)
    rows = _read(itertools.chain([first], source), columns, needs_answer)
    sample = next(rows)
    for term in terms:
        if term.name in NEEDS_TOKENS and not sample.num_tokens:
            raise DataError(f"{sample.where}: '{term.name}' needs token counts; add a column num_tokens to the file.")
    check_rewards([replace(term, accuracy=False) for term in terms], {*sample.values, "answer"})
    if out and Path(out).exists():
        raise ConfigError(f"--out {out}: the file already exists; choose another path.")
    tally = Tally(terms)
    temporary = Path(out).with_name(f".{Path(out).name}.writing") if out else None
    try:
        with _open_output(temporary, out) as stream:
            asyncio.run(_verify_all(itertools.chain([sample], rows), terms, config, tally, stream, on_progress))
        if temporary:
            os.replace(temporary, out)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    return tally


def _stream_rows(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, or all saved samples of a run."""
    saved = RunDirectory(find_run(spec)).samples
    return itertools.chain.from_iterable(stream_rows(str(path)) for path in saved) if saved else stream_rows(spec)


def _open_output(path: Path | None, out: str) -> IO[str]:
    try:
        return (path or Path(os.devnull)).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write this file ({error.strerror}); choose another path.") from None


def _read(rows: Iterator[tuple[str, dict[str, Any]]], columns: Columns, needs_answer: bool) -> Iterator[Row]:
    """Convert rows. Saved samples of a run have the data's other columns as JSON in the column `row`."""
    for where, values in rows:
        saved = values.pop("row", None) if "finish_reason" in values else None
        if isinstance(saved, str):
            values = {**json.loads(saved), **values}
        yield _row(where, values, columns, needs_answer and "schema" not in values)


def _row(where: str, values: dict[str, Any], columns: Columns, needs_answer: bool) -> Row:
    response_column = columns.find("response", values, where, True)
    answer_column = columns.find("answer", values, where, needs_answer)
    label_column = columns.find("label", values, where, False)
    response, answer = values.pop(response_column), values.pop(answer_column, None)
    label, prompt = values.pop(label_column, None), values.pop("prompt", "")
    token_ids, count = values.pop("token_ids", None), values.pop("num_tokens", None)
    num_tokens = len(token_ids) if isinstance(token_ids, list) else count if isinstance(count, int) else 0
    return Row(
        where,
        prompt if isinstance(prompt, str) else "",
        response if isinstance(response, str) else None,
        "" if answer is None else answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
        bool(label) if label in (0, 1) else None,
        bool(label_column),
        num_tokens,
        values.pop("finish_reason", "") == "length" or values.pop("truncated", False) is True,
        values,
    )


def _is_always_quick(name: str) -> bool:
    return name in BUILT_IN and BUILT_IN[name].always_quick


async def _verify_all(
    rows: Iterator[Row],
    terms: Sequence[RewardConfig],
    config: ScorerConfig | None,
    tally: Tally,
    out: IO[str],
    on_progress: Callable[[str], None] | None,
) -> None:
    """Send every row to every scorer, with at most `WINDOW` rows in flight, and count the verdicts in order."""
    async with AsyncExitStack() as stack:
        scorers = [await stack.enter_async_context(ProcessScorer([term], config)) for term in terms]
        started = reported = time.monotonic()
        window: deque[tuple[Row, asyncio.Future[list[Verdict]]]] = deque()

        async def finish_oldest() -> None:
            row, verdicts = window.popleft()
            out.write(tally.add(row, await verdicts) + "\n")

        try:
            for row in rows:
                window.append((row, asyncio.ensure_future(_verify_row(row, scorers, terms))))
                if len(window) >= WINDOW:
                    await finish_oldest()
                if on_progress and time.monotonic() - reported > PROGRESS_INTERVAL_S:
                    reported = time.monotonic()
                    on_progress(f"{tally.num_rows:,} rows, {tally.num_rows / (reported - started):,.0f}/s")
            while window:
                await finish_oldest()
        finally:
            for _, verdicts in window:
                verdicts.cancel()
        tally.seconds = time.monotonic() - started


async def _verify_row(row: Row, scorers: Sequence[ProcessScorer], terms: Sequence[RewardConfig]) -> list[Verdict]:
    if row.response is None:
        return [Verdict("unscorable", reason="the response is not text")] * len(terms)
    item = Item(row.prompt, row.response, row.answer, row.num_tokens, row.truncated, row.values)
    results = await asyncio.gather(*(scorer.timed_score(item) for scorer in scorers))
    return [make_verdict(term, score, seconds) for term, (score, seconds) in zip(terms, results, strict=True)]


def terminal_progress() -> Callable[[str], None] | None:
    """A callback that prints progress, or None if stderr is not a terminal."""
    return (lambda text: print(text, file=sys.stderr, flush=True)) if sys.stderr.isatty() else None
