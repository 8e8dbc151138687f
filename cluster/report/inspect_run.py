"""`volley inspect RUN`: print the samples of a run.

Control characters in the model's text are escaped, so that samples cannot control the terminal.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from volley.cluster.storage.directory import RunDirectory
from volley.rollout.data.parquet import read_groups
from volley.rollout.errors import ConfigError
from volley.rollout.types import Completion, Score, ScoredGroup

INDENT = "      "
CONTROL = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def inspect(
    run_dir: Path, step: int | None = None, limit: int = 3, only: str | None = None, file: IO[str] | None = None
) -> None:
    """Print `limit` groups of one step (default: the last one) to `file` (default: standard output).

    only: print only "right", "wrong" or "unscorable" completions, and the groups that have some.

    Colours are used only in a terminal. Raises `ConfigError` if there is no run, no rollouts, or no such step.
    """
    path = _rollouts(run_dir, step)
    groups = read_groups(path)
    console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
    console.print(_headline(path, groups))
    matching = [(group, chosen) for group in groups if (chosen := _chosen(group, only))]
    for group, chosen in matching[: max(limit, 0)]:
        _print_group(console, group, chosen)
    shown = f"{min(len(matching), max(limit, 0))} of {len(matching)} groups"
    console.print(Text(f"\n{shown}{f' with {only} completions' if only else ''} shown"))


def _rollouts(run_dir: Path, step: int | None) -> Path:
    if not run_dir.is_dir():
        raise ConfigError(f"there is no run '{run_dir}'; give the name of a directory in runs/, or a path.")
    files = {_step(path): path for path in RunDirectory(run_dir).samples}
    if not files:
        raise ConfigError(
            f"the run '{run_dir}' has no rollouts; they are written after the first step, unless the recipe sets "
            "save_rollouts: false."
        )
    if step is None:
        return files[max(files)]
    if step not in files:
        raise ConfigError(
            f"the run '{run_dir}' has no rollouts of step {step}; available steps: {_ranges(sorted(files))}."
        )
    return files[step]


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _ranges(steps: Sequence[int]) -> str:
    """Sorted numbers as ranges, such as `1-20, 30`."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def _chosen(group: ScoredGroup, only: str | None) -> list[int]:
    """Indices of the completions to print."""
    filters = {
        None: lambda score: True,
        "right": lambda score: score.accuracy == 1.0,
        "wrong": lambda score: score.accuracy < 1.0,
        "unscorable": lambda score: bool(score.unscorable),
    }
    if only not in filters:
        raise ConfigError(f"--only {only}: must be right, wrong or unscorable.")
    return [i for i, score in enumerate(group.scores) if filters[only](score)]


def _headline(path: Path, groups: Sequence[ScoredGroup]) -> Text:
    scores = [score for group in groups for score in group.scores]
    num_truncated = sum(completion.truncated for group in groups for completion in group.completions)
    parts = [
        f"{path.parent.parent}, step {_step(path)}: {len(groups)} groups, {len(scores)} completions",
        f"reward {_mean([score.reward for score in scores])}",
        f"accuracy {_mean([score.accuracy for score in scores])}",
        f"{num_truncated} truncated",
        f"{sum(bool(score.unscorable) for score in scores)} unscorable",
    ]
    return Text(" · ".join(parts), style="bold")


def _print_group(console: Console, group: ScoredGroup, chosen: Sequence[int]) -> None:
    prompt = group.prompt
    answer = f" · answer {_escape(prompt.answer)}" if prompt.answer else ""
    console.print(Text(f"\nprompt {prompt.ordinal} (row {prompt.index + 1}, {len(prompt.token_ids)} tokens){answer}"))
    console.print(Text(_block(prompt.text), style="cyan"))
    for sample in chosen:
        completion, score = group.completions[sample], group.scores[sample]
        console.print(Text(f"  [{sample + 1}] {_summary(completion, score)}", style=_style(score)))
        console.print(Text(_block(completion.text)))


def _summary(completion: Completion, score: Score) -> str:
    parts = [f"unscorable: {_escape(score.unscorable)}"] if score.unscorable else [f"reward {score.reward:.4g}"]
    parts += [f"{_escape(name)} {value:.4g}" for name, value in score.terms.items()]
    if not math.isnan(score.accuracy):
        parts.append("right" if score.accuracy == 1.0 else "no answer" if score.is_answerless else "wrong")
    if score.extracted:
        parts.append(f"extracted {_escape(score.extracted)}")
    parts.append(f"{completion.num_sampled} tokens")
    first, last = completion.first_version, completion.last_version
    parts.append(f"weights {first}" if first == last else f"weights {first} to {last}")
    if completion.truncated:
        parts.append("TRUNCATED")
    return " · ".join(parts)


def _style(score: Score) -> str:
    if score.unscorable:
        return "yellow"
    if math.isnan(score.accuracy):
        return "bold"
    return "green" if score.accuracy == 1.0 else "red"


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{math.fsum(known) / len(known):.4g}" if known else "unknown"


def _block(text: str) -> str:
    return "\n".join(INDENT + line for line in _escape(text).split("\n"))


def _escape(text: str) -> str:
    return text.translate(CONTROL)
