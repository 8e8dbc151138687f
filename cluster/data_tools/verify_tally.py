"""What `volley verify` found: counted row by row in bounded memory, for people, programs and a file of verdicts."""

import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import TIMED_OUT
from volley.rewards.math.extraction import extract
from volley.rewards.rubric.registry import BUILT_IN
from volley.rollout.types import Score

KINDS = ("right", "partly right", "wrong", "no answer", "unscorable", "time-out")
NUM_SLOWEST = 5
NUM_SHOWN = 8
NUM_EXAMPLES = 3
MAX_GROUPS = 10_000
MAX_SHOWN = 60

_LABEL = re.compile(r"^reward '[^']*':? ")
_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|\"(?:[^\"\\]|\\.)*\"|[0-9]+")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file. response: None where it is no text. label: None where it is neither true nor false.
    values: all other columns, which verifiers may ask for."""

    where: str
    prompt: str
    response: str | None
    answer: str
    label: bool | None
    is_labelled: bool
    num_tokens: int
    truncated: bool
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one verifier says of one row. kind: of `KINDS`. given: what it took for the answer, "" for nothing."""

    kind: str
    value: float = math.nan
    given: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return self.kind == "right"

    @property
    def is_scored(self) -> bool:
        return self.kind not in ("unscorable", "time-out")


def judged(term: RewardConfig, score: Score, seconds: float) -> Judged:
    """A score in words. "No answer" is known of verifiers that tell what they read only."""
    value = score.terms[term.label]
    given = score.extracted or ""
    if score.unscorable:
        is_late = score.unscorable.startswith(f"reward '{term.label}': {TIMED_OUT}")
        reason = _LABEL.sub("", score.unscorable)
        return Judged("time-out" if is_late else "unscorable", math.nan, given, reason, seconds)
    if value == 1.0:
        kind = "right"
    elif value > 0.0:
        kind = "partly right"
    else:
        kind = "no answer" if score.is_answerless else "wrong"
    return Judged(kind, value, given, "", seconds)


@dataclass(slots=True)
class Group:
    """How many rows are alike, and the first few of them."""

    number: int = 0
    examples: list[str] = field(default_factory=list)


class Groups:
    """Rows by what they have in common; from `MAX_GROUPS` on, new kinds are only counted."""

    def __init__(self) -> None:
        self.groups: dict[Hashable, Group] = {}
        self.num_others = 0

    def add(self, key: Hashable, example: str) -> None:
        if key not in self.groups and len(self.groups) >= MAX_GROUPS:
            self.num_others += 1
            return
        group = self.groups.setdefault(key, Group())
        group.number += 1
        if len(group.examples) < NUM_EXAMPLES:
            group.examples.append(example)

    @property
    def total(self) -> int:
        return self.num_others + sum(group.number for group in self.groups.values())

    def most_frequent(self) -> list[tuple[Any, Group]]:
        return sorted(self.groups.items(), key=lambda each: -each[1].number)


class Verdicts:
    """What one verifier said. slowest: (seconds, -row number, where, answer), a heap."""

    def __init__(self, term: RewardConfig) -> None:
        self.name = term.label
        self.tells_no_answer = term.name in BUILT_IN and BUILT_IN[term.name].extract_answer is not None
        self.counts = dict.fromkeys(KINDS, 0)
        self.seconds = 0.0
        self.reasons = Groups()
        self.slowest: list[tuple[float, int, str, str]] = []
        self.labels: Counter[str] = Counter()
        self.mislabelled = {True: Group(), False: Group()}

    def add(self, number: int, row: Row, said: Judged) -> None:
        self.counts[said.kind] += 1
        self.seconds += said.seconds
        if said.kind == "unscorable":
            self.reasons.add(_QUOTED.sub("...", said.reason), f"{row.where}: {said.reason}")
        entry = (said.seconds, -number, row.where, _shown(row.answer))
        if len(self.slowest) < NUM_SLOWEST:
            heapq.heappush(self.slowest, entry)
        else:
            heapq.heappushpop(self.slowest, entry)
        if row.label is not None and said.is_scored:
            self.labels["scored"] += 1
            self.labels["agree"] += said.is_right == row.label
            if said.is_right != row.label:
                group = self.mislabelled[said.is_right]
                group.number += 1
                if len(group.examples) < NUM_EXAMPLES:
                    given = f"given {_shown(said.given)}" if said.given else "no answer read"
                    group.examples.append(f"{row.where}: answer {_shown(row.answer)}, {given}")


class Tally:
    """All rows by one verifier, or by two that are compared. seconds: from the first to the last row."""

    def __init__(self, terms: Sequence[RewardConfig]) -> None:
        self.verdicts = [Verdicts(term) for term in terms]
        self.num_rows = 0
        self.num_labelled = 0
        self.num_bad_labels = 0
        self.seconds = 0.0
        self.differences = Groups()

    def add(self, row: Row, said: Sequence[Judged]) -> str:
        """Count a row; returns it as a line of JSON."""
        self.num_rows += 1
        self.num_labelled += row.label is not None
        self.num_bad_labels += row.is_labelled and row.label is None
        for verdicts, each in zip(self.verdicts, said, strict=True):
            verdicts.add(self.num_rows, row, each)
        if len(said) == 2 and (said[0].is_right, said[0].is_scored) != (said[1].is_right, said[1].is_scored):
            self._differ(row, said)
        return json.dumps(_record(row, dict(zip((each.name for each in self.verdicts), said, strict=True))))

    def _differ(self, row: Row, said: Sequence[Judged]) -> None:
        given = said[0].given or said[1].given or extract(row.response or "", row.truncated) or ""
        key = (said[0].kind, said[1].kind, _shape(row.answer), _shape(given))
        self.differences.add(key, f"{row.where}: answer {_shown(row.answer)}, given {_shown(given)}")

    def lines(self, spec: str) -> Iterator[str]:
        """For people."""
        rate = self.num_rows / self.seconds if self.seconds else math.nan
        yield f"{spec}: {self.num_rows:,} answers in {self.seconds:.1f} s, {rate:,.0f} a second"
        yield ""
        names = [each.name for each in self.verdicts]
        width = max(12, *(len(name) + 2 for name in names))
        yield " " * 14 + "".join(f"{name:>{width}}" for name in names)
        for kind in KINDS:
            if kind == "partly right" and not any(each.counts[kind] for each in self.verdicts):
                continue
            known = [kind != "no answer" or each.tells_no_answer for each in self.verdicts]
            counts = [f"{each.counts[kind]:,}" for each in self.verdicts]
            shown = (count if is_known else "-" for count, is_known in zip(counts, known, strict=True))
            yield f"{kind:14}" + "".join(f"{count:>{width}}" for count in shown)
        means = [each.seconds / max(1, self.num_rows) for each in self.verdicts]
        yield f"{'mean time':14}" + "".join(f"{_duration(mean):>{width}}" for mean in means)
        for each in self.verdicts:
            yield from self._details(each)
        if len(self.verdicts) == 2:
            yield from self._disagreements()

    def _details(self, verdicts: Verdicts) -> Iterator[str]:
        if verdicts.counts["unscorable"]:
            yield from ("", f"unscorable by {verdicts.name}")
            yield from _listed(verdicts.reasons)
        yield from ("", f"slowest of {verdicts.name}")
        for seconds, _, where, answer in sorted(verdicts.slowest, reverse=True):
            yield f"{_duration(seconds):>10}  {where}: answer {answer}"
        if not self.num_labelled and not self.num_bad_labels:
            return
        scored, agree = verdicts.labels["scored"], verdicts.labels["agree"]
        share = f", {agree / scored:.2%}" if scored else ""
        rest = f"; {self.num_labelled - scored:,} not scored" if scored < self.num_labelled else ""
        bad = f"; {self.num_bad_labels:,} labels are neither true nor false" if self.num_bad_labels else ""
        yield from ("", f"{verdicts.name} agrees with {agree:,} of {scored:,} labels{share}{rest}{bad}")
        for is_right, words in ((True, "right, labelled wrong"), (False, "not right, labelled right")):
            group = verdicts.mislabelled[is_right]
            if group.number:
                yield f"{group.number:>10,}  {words}"
                yield from (f"{'':14}{example}" for example in group.examples)

    def _disagreements(self) -> Iterator[str]:
        one, other = (each.name for each in self.verdicts)
        total = self.differences.total
        yield from ("", f"{one} and {other} disagree on {total:,} of {self.num_rows:,} answers")
        yield from _listed(self.differences, f"by {one} {{}}, by {other} {{}}: answer like {{}}, given like {{}}")

    def as_object(self, spec: str) -> dict[str, Any]:
        """For programs."""
        return {
            "data": spec,
            "rows": self.num_rows,
            "seconds": self.seconds,
            "labelled": self.num_labelled,
            "verifiers": [
                {
                    "name": each.name,
                    "counts": each.counts,
                    "seconds": each.seconds,
                    "labels": {"scored": each.labels["scored"], "agree": each.labels["agree"]},
                    "unscorable": _objects(each.reasons),
                    "slowest": [
                        {"seconds": seconds, "place": where} for seconds, _, where, _ in sorted(each.slowest)[::-1]
                    ],
                }
                for each in self.verdicts
            ],
            "disagreements": {"rows": self.differences.total, "groups": _objects(self.differences)},
        }


def _listed(groups: Groups, words: str = "{}") -> Iterator[str]:
    """The most frequent groups with examples, then how many rows are in the others."""
    frequent = groups.most_frequent()
    for key, group in frequent[:NUM_SHOWN]:
        yield f"{group.number:>10,}  {words.format(*key) if isinstance(key, tuple) else key}"
        yield from (f"{'':14}{example}" for example in group.examples)
    rest = groups.num_others + sum(group.number for _, group in frequent[NUM_SHOWN:])
    if rest:
        yield f"{rest:>10,}  others"


def _objects(groups: Groups) -> list[dict[str, Any]]:
    return [
        {"kind": list(key) if isinstance(key, tuple) else key, "rows": group.number, "examples": group.examples}
        for key, group in groups.most_frequent()[:NUM_SHOWN]
    ]


def _record(row: Row, said: Mapping[str, Judged]) -> dict[str, Any]:
    verdicts = {
        name: {
            "verdict": each.kind,
            "value": each.value if math.isfinite(each.value) else None,
            "given": each.given,
            "reason": each.reason,
            "seconds": round(each.seconds, 6),
        }
        for name, each in said.items()
    }
    return {"place": row.where, "answer": row.answer, "label": row.label, "verdicts": verdicts}


def _shape(text: str) -> str:
    """A text with its numbers made alike."""
    return _shown(_DIGITS.sub("0", text)) if text else "nothing"


def _shown(text: str) -> str:
    text = text if len(text) <= MAX_SHOWN else f"...{text[-MAX_SHOWN:]}"
    return repr(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
