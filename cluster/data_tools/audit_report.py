"""What `volley audit` found, for people and for programs."""

import json
import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """state: "ok", "warn" (trains, but not as well as it could) or "fail" (refused by `volley train`, or makes its
    result worthless). found: one sentence. mend: what to do, "" when ok. numbers: the same for programs; NaN where
    there is none."""

    name: str
    state: str
    found: str
    mend: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


def print_findings(findings: Sequence[Finding]) -> int:
    """Print what was found and what to do about it, as wide as the terminal is; the exit code is 1 when something
    fails."""
    width = max(len(finding.name) for finding in findings)
    room = max(60, shutil.get_terminal_size((120, 24)).columns)
    for finding in findings:
        margin = " " * (width + 8)
        head = f"{finding.state:<4}  {finding.name:<{width}}  "
        print(textwrap.fill(finding.found, room, initial_indent=head, subsequent_indent=margin, break_long_words=False))
        if finding.mend:
            start, rest = f"{margin}-> ", f"{margin}   "
            print(textwrap.fill(finding.mend, room, initial_indent=start, subsequent_indent=rest))
    counts = {state: sum(finding.state == state for finding in findings) for state in ("fail", "warn", "ok")}
    print(", ".join(f"{number} {state}" for state, number in counts.items() if number))
    return 1 if counts["fail"] else 0


def print_json(data: str, kind: str, num_rows: int, findings: Sequence[Finding]) -> int:
    """Print the same as one JSON object, for programs; numbers that are none are null."""
    listed = [asdict(finding) for finding in findings]
    for each in listed:
        each["numbers"] = {name: value if math.isfinite(value) else None for name, value in each["numbers"].items()}
    print(json.dumps({"data": data, "kind": kind, "rows": num_rows, "findings": listed}))
    return 1 if any(finding.state == "fail" for finding in findings) else 0
