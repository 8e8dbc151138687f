"""The commands of `volley` that look at data before anything runs: `audit`, `verify` and `init`."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from volley.rollout.errors import ConfigError


def add_data_commands(commands: Any) -> None:
    """To the subcommands of an `argparse` parser."""
    audit = commands.add_parser("audit", help="check a data set and say what it predicts")
    audit.add_argument("data", help="a .jsonl or .parquet file, a directory, or a hub name")
    audit.add_argument("--model", default="", help="a model directory or hub name, to count in its tokens")
    audit.add_argument("--test", default="", help="the held-out data, to look for leakage")
    audit.add_argument("--columns", nargs="+", default=[], metavar="OURS=YOURS", help="for instance prompt=question")
    audit.add_argument("--json", action="store_true", help="print one JSON object")
    audit.set_defaults(run=_audit)

    verify = commands.add_parser("verify", help="judge a file of responses by a verifier, or compare two")
    verify.add_argument("data", metavar="FILE", help="responses and answers: .jsonl, .parquet, or a run's name")
    which = "math (default, or what the row's column 'verifier' names), a built-in reward, or rewards.py:function"
    verify.add_argument("--verifier", default="", help=f"{which}; with --recipe the label of one of its rewards")
    verify.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help="for instance tolerance=0.01")
    verify.add_argument("--recipe", default="", help="take the verifier from this recipe's rewards")
    verify.add_argument("--against", default="", metavar="VERIFIER", help="another one to compare with, or math_verify")
    verify.add_argument("--response", default="", metavar="COLUMN", help="default: response or completion")
    verify.add_argument("--answer", default="", metavar="COLUMN", help="default: answer")
    verify.add_argument("--label", default="", metavar="COLUMN", help="true or false; default: is_correct or label")
    verify.add_argument("--out", default="", metavar="FILE", help="write every row's verdict there, as .jsonl")
    verify.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for one answer (default: 5)")
    verify.add_argument("--workers", type=int, default=0, metavar="N", help="child processes (default: one per core)")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)

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
            raise ConfigError("--options goes with --verifier; a recipe states the options of its rewards itself.")
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
        raise ConfigError(f"'{out}' exists; give another place with --out, so that nothing is overwritten.")
    text = propose(
        options.data, options.model, MethodOptions(options.concise, options.low_memory, options.spin, options.loss)
    )
    out.write_text(text)
    print("\n".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())))
    print(f"wrote {out}; look through it, then: volley train {out} --dry-run")
    return 0
