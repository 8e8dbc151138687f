"""The commands of `volley` that look at data before anything runs: `audit` and `init`."""

import argparse
import itertools
from pathlib import Path
from typing import Any

from rollout.errors import ConfigError


def add_data_commands(commands: Any) -> None:
    """To the subcommands of an `argparse` parser."""
    audit = commands.add_parser("audit", help="check a data set and say what it predicts")
    audit.add_argument("data", help="a .jsonl or .parquet file, a directory, or a hub name")
    audit.add_argument("--model", default="", help="a model directory or hub name, to count in its tokens")
    audit.add_argument("--test", default="", help="the held-out data, to look for leakage")
    audit.add_argument("--columns", nargs="+", default=[], metavar="OURS=YOURS", help="for instance prompt=question")
    audit.add_argument("--json", action="store_true", help="print one JSON object")
    audit.set_defaults(run=_audit)

    init = commands.add_parser("init", help="propose a recipe for your data")
    init.add_argument("--data", required=True, help="a .jsonl or .parquet file, a directory, or a hub name")
    init.add_argument("--model", help="a model directory or hub name")
    init.add_argument("--concise", action="store_true", help="of pairs, the method for concise answers (SimPO)")
    init.add_argument("--low-memory", action="store_true", help="of pairs, the method without a reference model (ORPO)")
    init.add_argument("--spin", action="store_true", help="of demonstrations, self-play instead of SFT")
    init.add_argument("--loss", default="", help="the method by name; one that does not fit says which do")
    init.add_argument("--out", default="recipe.yaml", help="where to write it (default: recipe.yaml)")
    init.set_defaults(run=_init)


def _audit(options: argparse.Namespace) -> int:
    from cluster.audit import audit, parse_columns
    from cluster.audit_report import print_findings, print_json

    findings, table = audit(options.data, options.model, options.test, parse_columns(options.columns))
    if options.json:
        return print_json(options.data, table.kind, len(table.rows), findings)
    return print_findings(findings)


def _init(options: argparse.Namespace) -> int:
    from cluster.init_method import Wishes
    from cluster.init_recipe import propose

    out = Path(options.out)
    if out.exists():
        raise ConfigError(f"'{out}' exists; give another place with --out, so that nothing is overwritten.")
    text = propose(options.data, options.model, Wishes(options.concise, options.low_memory, options.spin, options.loss))
    out.write_text(text)
    print("\n".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())))
    print(f"wrote {out}; look through it, then: volley train {out} --dry-run")
    return 0
