"""The `volley` commands for data: `audit`, `verify` and `init`."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from volley.rollout.errors import ConfigError

DATA_HELP = "a .jsonl or .parquet file, a directory, or a hub name"
JSON_HELP = "print the result as one JSON object"


def add_data_commands(commands: Any) -> None:
    """Add the commands to the subparsers of an `argparse` parser."""
    _add_audit(commands)
    _add_verify(commands)
    _add_init(commands)


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser("audit", help="check a data set for problems before training")
    audit.add_argument("data", help=DATA_HELP)
    audit.add_argument("--model", default="", help="a model directory or hub name, to count tokens")
    audit.add_argument("--test", default="", help="the held-out data set, to check for leakage")
    audit.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="map column names, e.g. prompt=question"
    )
    audit.add_argument("--json", action="store_true", help=JSON_HELP)
    audit.set_defaults(run=_audit)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="run a verifier on a file of responses, or compare two verifiers")
    verify.add_argument(
        "data", metavar="FILE", help="responses and answers: a .jsonl or .parquet file, or the name of a run"
    )
    verify.add_argument(
        "--verifier",
        default="",
        help="a built-in reward or rewards.py:function (default: the row's column 'verifier', otherwise math); "
        "with --recipe, the label of one of its rewards",
    )
    verify.add_argument(
        "--options", nargs="+", default=[], metavar="NAME=VALUE", help="options of the verifier, e.g. tolerance=0.01"
    )
    verify.add_argument("--recipe", default="", help="use a verifier from the rewards of this recipe")
    verify.add_argument(
        "--against", default="", metavar="VERIFIER", help="a second verifier to compare, or math_verify"
    )
    verify.add_argument(
        "--response", default="", metavar="COLUMN", help="column of responses (default: response or completion)"
    )
    verify.add_argument("--answer", default="", metavar="COLUMN", help="column of reference answers (default: answer)")
    verify.add_argument(
        "--label", default="", metavar="COLUMN", help="column of true/false labels (default: is_correct or label)"
    )
    verify.add_argument("--out", default="", metavar="FILE", help="write the verdicts to this .jsonl file")
    verify.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="time limit per response (default: 5)"
    )
    verify.add_argument(
        "--workers", type=int, default=0, metavar="N", help="number of child processes (default: one per core)"
    )
    verify.add_argument("--json", action="store_true", help=JSON_HELP)
    verify.set_defaults(run=_verify)


def _add_init(commands: Any) -> None:
    init = commands.add_parser("init", help="write a recipe for your data")
    init.add_argument("--data", required=True, help=DATA_HELP)
    init.add_argument("--model", help="a model directory or hub name")
    init.add_argument("--concise", action="store_true", help="for pairs: prefer concise responses (SimPO)")
    init.add_argument("--low-memory", action="store_true", help="for pairs: use no reference model (ORPO)")
    init.add_argument("--spin", action="store_true", help="for demonstrations: self-play (SPIN) instead of SFT")
    init.add_argument("--loss", default="", metavar="METHOD", help="select the method by name, e.g. dpo")
    init.add_argument("--out", default="recipe.yaml", help="path of the recipe (default: recipe.yaml)")
    init.set_defaults(run=_init)


def _audit(options: argparse.Namespace) -> int:
    from volley.cluster.data_tools.audit import audit, parse_columns
    from volley.cluster.data_tools.audit_report import print_findings, print_json

    findings, table = audit(options.data, options.model, options.test, parse_columns(options.columns))
    if options.json:
        return print_json(options.data, table.kind, len(table.rows), findings)
    return print_findings(findings)


def _verify(options: argparse.Namespace) -> int:
    from volley.cluster.data_tools.verify import (
        Columns,
        parse_options,
        recipe_term,
        terminal_progress,
        terms_to_compare,
        verifier_term,
        verify_file,
    )
    from volley.rewards.config import ScorerConfig

    if options.recipe:
        from volley.cluster.recipe.config import load_recipe

        if options.options:
            raise ConfigError(
                "--options cannot be combined with --recipe; the recipe defines the options of its rewards."
            )
        term = recipe_term(load_recipe(options.recipe).rewards, options.verifier)
    else:
        term = verifier_term(options.verifier or "verifier", parse_options(options.options))
    terms = terms_to_compare(term, verifier_term(options.against)) if options.against else [term]
    columns = Columns(options.response, options.answer, options.label)
    config = ScorerConfig(options.workers, options.timeout)
    tally = verify_file(options.data, terms, columns, options.out, config, terminal_progress())
    if options.json:
        print(json.dumps(tally.as_object(options.data)))
    else:
        print("\n".join(tally.lines(options.data)))
    return 0


def _init(options: argparse.Namespace) -> int:
    from volley.cluster.data_tools.init_method import MethodOptions
    from volley.cluster.data_tools.init_recipe import propose

    out = Path(options.out)
    if out.exists():
        raise ConfigError(f"'{out}' already exists; choose another path with --out.")
    text = propose(
        options.data, options.model, MethodOptions(options.concise, options.low_memory, options.spin, options.loss)
    )
    out.write_text(text)
    print("\n".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())))
    print(f"Wrote {out}. Review it, then run: volley train {out} --dry-run")
    return 0
