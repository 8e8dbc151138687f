"""Findings of `volley audit`, printed as text or JSON."""

import json
import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    state: str
    """One of "ok", "warn" (training works, but worse than it could) and "fail" (`volley train` refuses the data, or its
    result would be worthless)."""
    found: str
    """One sentence."""
    fix: str = ""
    """What to do about it; "" if the state is "ok"."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The result as numbers; NaN if there is none."""


def print_findings(findings: Sequence[Finding]) -> int:
    """Print findings and fixes, wrapped to the terminal's width. Returns exit code 1 if a check failed."""
    width = max(len(finding.name) for finding in findings)
    columns = max(60, shutil.get_terminal_size((120, 24)).columns)
    for finding in findings:
        margin = " " * (width + 8)
        head = f"{finding.state:<4}  {finding.name:<{width}}  "
        print(
            textwrap.fill(finding.found, columns, initial_indent=head, subsequent_indent=margin, break_long_words=False)
        )
        if finding.fix:
            start, rest = f"{margin}-> ", f"{margin}   "
            print(textwrap.fill(finding.fix, columns, initial_indent=start, subsequent_indent=rest))
    counts = {state: sum(finding.state == state for finding in findings) for state in ("fail", "warn", "ok")}
    print(", ".join(f"{number} {state}" for state, number in counts.items() if number))
    return 1 if counts["fail"] else 0


def print_json(data: str, kind: str, num_rows: int, findings: Sequence[Finding]) -> int:
    """Print findings as one JSON object; NaN and infinity become null. Returns the same exit code."""
    listed = [asdict(finding) for finding in findings]
    for each in listed:
        each["numbers"] = {name: value if math.isfinite(value) else None for name, value in each["numbers"].items()}
    print(json.dumps({"data": data, "kind": kind, "rows": num_rows, "findings": listed}))
    return 1 if any(finding.state == "fail" for finding in findings) else 0
