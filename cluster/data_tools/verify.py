"""`volley verify`: any verifier over a file of responses and answers, through the service that scores in training.

    rows of the file -> a window of them in flight -> Scorer, one per verifier -> tallies, in the file's order

Nothing grows with the file: of the rows that are done the tallies keep counts and a few examples. Terms that see whole
groups (a judge) are no verifiers of single answers and are refused.
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

from volley.cluster.data_tools.verify_tally import Judged, Row, Tally, judged
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
"""Rows in flight: enough for every child, and all that is in memory."""
SAID_EVERY_S = 10.0
MATH_VERIFY = "math_verify"
COUNTED = ("length", "length_cosine", "length_band")
"""Rewards that cannot do without the number of tokens."""
OURS = {"response": ("response", "completion"), "answer": ("answer",), "label": ("is_correct", "label")}


@dataclass(frozen=True)
class Columns:
    """What the file calls them, "" for our own names, of which the first one that is there counts."""

    response: str = ""
    answer: str = ""
    label: str = ""

    def find(self, what: str, there: Mapping[str, Any], where: str, needed: bool) -> str:
        """The column for `what` among those of a row, "" where there is none. Raises DataError if one must be."""
        given: str = getattr(self, what)
        names = (given,) if given else OURS[what]
        found = next((name for name in names if name in there), "")
        if not found and (needed or given):
            listed = ", ".join(map(str, there)) or "none"
            raise DataError(
                f"{where}: there is no column {' or '.join(map(repr, names))} for the {what}; the columns there are: "
                f"{listed}. Name the right one with --{what}."
            )
        return found


def verifier_term(name: str, options: Mapping[str, Any] | None = None) -> RewardConfig:
    """The reward term for a verifier's name: one of a row's `verifier` column, any built-in reward, `math_verify`, or a
    function as recipes name it. Raises ConfigError."""
    if name in GROUP_TERMS:
        raise ConfigError(f"'{name}' scores the answers of a prompt together, so it is no verifier of single answers.")
    if name == MATH_VERIFY:
        if importlib.util.find_spec(MATH_VERIFY) is None:
            raise ConfigError("math_verify: the package is not installed; get it with pip install math-verify.")
        return RewardConfig(
            "volley.rewards.math.math_verify:reward", label=name, options=dict(options or {}), accuracy=True
        )
    if name in VERIFIERS:
        chosen = {"verifier": name, **(options or {})}
        return RewardConfig("verifier", label=name, options=chosen, accuracy=True)
    return RewardConfig(name, options=dict(options or {}), accuracy=True)


def recipe_term(terms: Sequence[RewardConfig], label: str = "") -> RewardConfig:
    """A recipe's term by its label; without one the term that tells what is correct. Raises ConfigError."""
    plain = [term for term in terms if term.name not in GROUP_TERMS]
    known = ", ".join(term.label for term in plain) or "none"
    if label:
        chosen = [term for term in plain if term.label == label]
    else:
        chosen = [term for term in plain if term.accuracy] or [term for term in plain if term.name in VERIFIERS]
        chosen = chosen or (plain if len(plain) == 1 else [])
    if not chosen:
        problem = f"the recipe has no reward labelled '{label}'" if label else "no reward of the recipe is flagged"
        raise ConfigError(f"{problem} as a verifier; name one with --verifier; it has {known}.")
    return replace(chosen[0], accuracy=True)


def side_by_side(one: RewardConfig, other: RewardConfig) -> list[RewardConfig]:
    """Two terms to be compared, under different labels. Raises ConfigError if they are the same."""
    if one.label != other.label:
        return [one, other]
    if (one.name, one.options) == (other.name, other.options):
        raise ConfigError(f"--against {other.label}: this is the verifier itself; name another one.")
    return [replace(term, label=f"{place}:{term.name}") for place, term in enumerate((one, other), 1)]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["tolerance=0.01"]` with values as a recipe spells them. Raises ConfigError."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (name and equals):
            raise ConfigError(f"--options {pair}: write NAME=VALUE, for instance tolerance=0.01.")
    return options


def verify_file(
    spec: str,
    terms: Sequence[RewardConfig],
    columns: Columns,
    out: str = "",
    config: ScorerConfig | None = None,
    say: Callable[[str], None] | None = None,
) -> Tally:
    """Judge every row of `spec`, a file or a run, by each of `terms` (one, or two to be compared). out: a file for the
    verdicts, one JSON object a row, in the rows' order; it appears when it is whole. say: told now and then how far it
    is.

    Raises DataError for a file that cannot be read, ConfigError for what contradicts, RewardError for a term that
    cannot be loaded.
    """
    source = _rows_of(spec)
    first = next(source, None)
    if first is None:
        raise DataError(f"{spec}: there are no rows in it; there is nothing to verify.")
    needs_answer = any(":" not in term.name and not _is_always_quick(term.name) for term in terms)
    rows = _read(itertools.chain([first], source), columns, needs_answer)
    sample = next(rows)
    for term in terms:
        if term.name in COUNTED and not sample.num_tokens:
            raise DataError(f"{sample.where}: '{term.name}' counts tokens; give the file a column num_tokens.")
    check_rewards([replace(term, accuracy=False) for term in terms], {*sample.values, "answer"})
    if out and Path(out).exists():
        raise ConfigError(f"'{out}' exists; give another place with --out, so that nothing is overwritten.")
    tally = Tally(terms)
    temporary = Path(out).with_name(f".{Path(out).name}.writing") if out else None
    try:
        with _opened(temporary, out) as stream:
            asyncio.run(_judge_all(itertools.chain([sample], rows), terms, config, tally, stream, say))
        if temporary:
            os.replace(temporary, out)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    return tally


def _rows_of(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file's rows; a run's, which is named or is a directory, are all samples that it saved."""
    saved = RunDirectory(find_run(spec)).samples
    return itertools.chain.from_iterable(stream_rows(str(path)) for path in saved) if saved else stream_rows(spec)


def _opened(path: Path | None, out: str) -> IO[str]:
    try:
        return (path or Path(os.devnull)).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: it cannot be written ({error.strerror}); give another place.") from None


def _read(rows: Iterator[tuple[str, dict[str, Any]]], columns: Columns, needs_answer: bool) -> Iterator[Row]:
    """Also the samples of a run, which keep the data's other columns in one, as JSON."""
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


async def _judge_all(
    rows: Iterator[Row],
    terms: Sequence[RewardConfig],
    config: ScorerConfig | None,
    tally: Tally,
    out: IO[str],
    say: Callable[[str], None] | None,
) -> None:
    """Every row to every scorer; at most `WINDOW` in flight, taken in their order."""
    async with AsyncExitStack() as stack:
        scorers = [await stack.enter_async_context(ProcessScorer([term], config)) for term in terms]
        started = said = time.monotonic()
        window: deque[tuple[Row, asyncio.Future[list[Judged]]]] = deque()

        async def take() -> None:
            row, verdicts = window.popleft()
            out.write(tally.add(row, await verdicts) + "\n")

        try:
            for row in rows:
                window.append((row, asyncio.ensure_future(_judge(row, scorers, terms))))
                if len(window) >= WINDOW:
                    await take()
                if say and time.monotonic() - said > SAID_EVERY_S:
                    said = time.monotonic()
                    say(f"{tally.num_rows:,} rows, {tally.num_rows / (said - started):,.0f}/s")
            while window:
                await take()
        finally:
            for _, verdicts in window:
                verdicts.cancel()
        tally.seconds = time.monotonic() - started


async def _judge(row: Row, scorers: Sequence[ProcessScorer], terms: Sequence[RewardConfig]) -> list[Judged]:
    if row.response is None:
        return [Judged("unscorable", reason="the row's response is no text")] * len(terms)
    item = Item(row.prompt, row.response, row.answer, row.num_tokens, row.truncated, row.values)
    results = await asyncio.gather(*(scorer.timed_score(item) for scorer in scorers))
    return [judged(term, score, seconds) for term, (score, seconds) in zip(terms, results, strict=True)]


def say_on_terminal() -> Callable[[str], None] | None:
    """Prints progress where somebody watches."""
    return (lambda text: print(text, file=sys.stderr, flush=True)) if sys.stderr.isatty() else None
