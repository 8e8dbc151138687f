"""Results of `volley verify`: verdicts are counted row by row in bounded memory and printed as text or JSON."""

import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from volley.cluster.data_tools.verdict import OUTCOMES, Row, Verdict
from volley.rewards.config import RewardConfig
from volley.rewards.math.extraction import extract
from volley.rewards.rubric.registry import BUILT_IN

NUM_SLOWEST = 5
NUM_PRINTED_BUCKETS = 8
NUM_EXAMPLES = 3
MAX_BUCKETS = 10_000
MAX_CHARACTERS = 60

_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|\"(?:[^\"\\]|\\.)*\"|[0-9]+")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(slots=True)
class Bucket:
    """The number of similar rows, with the first few as examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(example)


class Buckets:
    """Rows grouped by a key. After `MAX_BUCKETS` keys, rows with a new key are only counted."""

    def __init__(self) -> None:
        self.buckets: dict[Hashable, Bucket] = {}
        self.num_others = 0

    def add(self, key: Hashable, example: str) -> None:
        if key not in self.buckets and len(self.buckets) >= MAX_BUCKETS:
            self.num_others += 1
            return
        self.buckets.setdefault(key, Bucket()).add(example)

    @property
    def total(self) -> int:
        return self.num_others + sum(bucket.count for bucket in self.buckets.values())

    def most_frequent(self) -> list[tuple[Any, Bucket]]:
        return sorted(self.buckets.items(), key=lambda each: -each[1].count)


class VerifierTally:
    """Counts and examples of the verdicts of one verifier."""

    def __init__(self, term: RewardConfig) -> None:
        self.name = term.label
        self.reports_no_answer = term.name in BUILT_IN and BUILT_IN[term.name].extract_answer is not None
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.seconds = 0.0
        self.reasons = Buckets()
        self.slowest: list[tuple[float, int, str, str]] = []
        """A heap of (seconds, -row number, where, answer)."""
        self.labels: Counter[str] = Counter()
        self.mislabelled = {True: Bucket(), False: Bucket()}
        """Whether the verdict is "right" -> rows whose label says the opposite."""

    def add(self, number: int, row: Row, verdict: Verdict) -> None:
        self.counts[verdict.outcome] += 1
        self.seconds += verdict.seconds
        if verdict.outcome == "unscorable":
            self.reasons.add(_QUOTED.sub("...", verdict.reason), f"{row.where}: {verdict.reason}")
        entry = (verdict.seconds, -number, row.where, _clipped(row.answer))
        if len(self.slowest) < NUM_SLOWEST:
            heapq.heappush(self.slowest, entry)
        else:
            heapq.heappushpop(self.slowest, entry)
        if row.label is not None and verdict.is_scored:
            self.labels["scored"] += 1
            self.labels["agree"] += verdict.is_right == row.label
            if verdict.is_right != row.label:
                given = f"given {_clipped(verdict.given)}" if verdict.given else "no answer found"
                self.mislabelled[verdict.is_right].add(f"{row.where}: answer {_clipped(row.answer)}, {given}")


class Tally:
    """Counts and examples of all rows, for one verifier or two that are compared."""

    def __init__(self, terms: Sequence[RewardConfig]) -> None:
        self.verifiers = [VerifierTally(term) for term in terms]
        self.num_rows = 0
        self.num_labelled = 0
        self.num_bad_labels = 0
        self.seconds = 0.0
        """Wall time from the first to the last row."""
        self.disagreements = Buckets()

    def add(self, row: Row, verdicts: Sequence[Verdict]) -> str:
        """Count a row, with one verdict per verifier. Returns the row as a line of JSON."""
        self.num_rows += 1
        self.num_labelled += row.label is not None
        self.num_bad_labels += row.is_labelled and row.label is None
        for verifier, verdict in zip(self.verifiers, verdicts, strict=True):
            verifier.add(self.num_rows, row, verdict)
        if len({(verdict.is_right, verdict.is_scored) for verdict in verdicts}) > 1:
            self._add_disagreement(row, *verdicts)
        names = (verifier.name for verifier in self.verifiers)
        return json.dumps(_as_object(row, dict(zip(names, verdicts, strict=True))))

    def _add_disagreement(self, row: Row, first: Verdict, second: Verdict) -> None:
        given = first.given or second.given or extract(row.response or "", row.truncated) or ""
        key = (first.outcome, second.outcome, _without_numbers(row.answer), _without_numbers(given))
        self.disagreements.add(key, f"{row.where}: answer {_clipped(row.answer)}, given {_clipped(given)}")

    def lines(self, spec: str) -> Iterator[str]:
        """The result as text for the terminal."""
        rate = self.num_rows / self.seconds if self.seconds else math.nan
        yield f"{spec}: {self.num_rows:,} responses in {self.seconds:.1f} s, {rate:,.0f} per second"
        yield ""
        width = max(12, *(len(each.name) + 2 for each in self.verifiers))
        yield " " * 14 + "".join(f"{each.name:>{width}}" for each in self.verifiers)
        for outcome in OUTCOMES:
            if outcome == "partly right" and not any(each.counts[outcome] for each in self.verifiers):
                continue
            cells = (
                f"{each.counts[outcome]:,}" if outcome != "no answer" or each.reports_no_answer else "-"
                for each in self.verifiers
            )
            yield f"{outcome:14}" + "".join(f"{cell:>{width}}" for cell in cells)
        means = [each.seconds / max(1, self.num_rows) for each in self.verifiers]
        yield f"{'mean time':14}" + "".join(f"{_duration(mean):>{width}}" for mean in means)
        for each in self.verifiers:
            yield from self._details(each)
        if len(self.verifiers) == 2:
            yield from self._disagreement_lines()

    def _details(self, verifier: VerifierTally) -> Iterator[str]:
        if verifier.counts["unscorable"]:
            yield from ("", f"unscorable by {verifier.name}")
            yield from _bucket_lines(verifier.reasons)
        yield from ("", f"slowest rows of {verifier.name}")
        for seconds, _, where, answer in sorted(verifier.slowest, reverse=True):
            yield f"{_duration(seconds):>10}  {where}: answer {answer}"
        if not self.num_labelled and not self.num_bad_labels:
            return
        scored, agree = verifier.labels["scored"], verifier.labels["agree"]
        share = f", {agree / scored:.2%}" if scored else ""
        rest = f"; {self.num_labelled - scored:,} not scored" if scored < self.num_labelled else ""
        bad = f"; {self.num_bad_labels:,} labels are neither true nor false" if self.num_bad_labels else ""
        yield from ("", f"{verifier.name} agrees with {agree:,} of {scored:,} labels{share}{rest}{bad}")
        for is_right, words in ((True, "right, labelled wrong"), (False, "not right, labelled right")):
            bucket = verifier.mislabelled[is_right]
            if bucket.count:
                yield f"{bucket.count:>10,}  {words}"
                yield from (f"{'':14}{example}" for example in bucket.examples)

    def _disagreement_lines(self) -> Iterator[str]:
        first, second = (each.name for each in self.verifiers)
        total = self.disagreements.total
        yield from ("", f"{first} and {second} disagree on {total:,} of {self.num_rows:,} responses")
        template = f"{first}: {{}}, {second}: {{}}; answers like {{}}, given like {{}}"
        yield from _bucket_lines(self.disagreements, template)

    def as_object(self, spec: str) -> dict[str, Any]:
        """The result as an object for JSON."""
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
                    "unscorable": _bucket_objects(each.reasons),
                    "slowest": [
                        {"seconds": seconds, "place": where} for seconds, _, where, _ in sorted(each.slowest)[::-1]
                    ],
                }
                for each in self.verifiers
            ],
            "disagreements": {"rows": self.disagreements.total, "groups": _bucket_objects(self.disagreements)},
        }


def _bucket_lines(buckets: Buckets, template: str = "{}") -> Iterator[str]:
    """The most frequent buckets with examples, then the number of all other rows."""
    frequent = buckets.most_frequent()
    for key, bucket in frequent[:NUM_PRINTED_BUCKETS]:
        yield f"{bucket.count:>10,}  {template.format(*key) if isinstance(key, tuple) else key}"
        yield from (f"{'':14}{example}" for example in bucket.examples)
    rest = buckets.num_others + sum(bucket.count for _, bucket in frequent[NUM_PRINTED_BUCKETS:])
    if rest:
        yield f"{rest:>10,}  others"


def _bucket_objects(buckets: Buckets) -> list[dict[str, Any]]:
    return [
        {"kind": list(key) if isinstance(key, tuple) else key, "rows": bucket.count, "examples": bucket.examples}
        for key, bucket in buckets.most_frequent()[:NUM_PRINTED_BUCKETS]
    ]


def _as_object(row: Row, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """A row of the file of verdicts."""
    objects = {
        name: {
            "verdict": each.outcome,
            "value": each.value if math.isfinite(each.value) else None,
            "given": each.given,
            "reason": each.reason,
            "seconds": round(each.seconds, 6),
        }
        for name, each in verdicts.items()
    }
    return {"place": row.where, "answer": row.answer, "label": row.label, "verdicts": objects}


def _without_numbers(text: str) -> str:
    """A text with every number replaced by 0, so that similar texts become equal."""
    return _clipped(_DIGITS.sub("0", text)) if text else "nothing"


def _clipped(text: str) -> str:
    """The end of a text, quoted."""
    return repr(text if len(text) <= MAX_CHARACTERS else f"...{text[-MAX_CHARACTERS:]}")


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
