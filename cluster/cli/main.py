"""The `volley` command. Each command is a few lines here; what it does lives in the module it names.

Exit codes: 0 done, 1 the run failed, 2 usage or configuration, 3 data, 4 checkpoint, 5 model, 6 reward,
130 interrupted.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from volley.cluster.cli.cluster_commands import add_cluster_commands
from volley.cluster.cli.data_commands import add_data_commands
from volley.cluster.on_ray.probe import check_recipe
from volley.cluster.on_ray.token import discard_own_token, prepare_token
from volley.cluster.recipe.config import RUNS, Recipe, load_recipe, read_content
from volley.cluster.recipe.stages import stage_names, train_all
from volley.cluster.storage.directory import RunDirectory, find_run
from volley.rollout.errors import ConfigError, VolleyError


def program() -> None:
    """The `volley` command."""
    code = main()
    discard_own_token()
    sys.stdout.flush()
    sys.stderr.flush()
    # The exit handlers of vLLM and DeepSpeed can hang or abort after all work is done and saved.
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, return its exit code."""
    try:
        options = _parse(arguments)
        return int(options.run(options))
    except BaseException as error:
        return _explain(error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """As argparse does, but overrides may stand before and after flags."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in each and not each.startswith("-") for each in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _explain(error: BaseException) -> int:
    """One sentence for what a user can mend; everything else keeps its traceback."""
    if isinstance(error, BaseExceptionGroup):
        # One loss shows in several places; a sentence for the user says more than the others' traces.
        told, rest = error.split((VolleyError, FloatingPointError, TimeoutError))
        if rest is not None and told is not None:
            sys.excepthook(type(rest), rest, rest.__traceback__)
        if told is not None or len(error.exceptions) == 1:
            return _explain((told or error).exceptions[0])
    if isinstance(error, VolleyError):
        print(f"volley: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, (FloatingPointError, TimeoutError)):
        print(f"volley: the run stopped: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="volley", description="Post-train language models with online RL.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train by a recipe")
    train.add_argument("recipe", help="a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for instance steps=50 learner.lr=1e-5")
    train.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint")
    train.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    train.add_argument("--auto-resume", action="store_true", help="go on from a checkpoint if there is one, else start")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="evaluate a model by a recipe's test data and rewards")
    evaluate.add_argument("recipe")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="for instance model=runs/demo/model")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="write a run's report page")
    report.add_argument("run_name", metavar="RUN", help="a name below runs/, or a directory")
    report.set_defaults(run=_report)

    inspect = commands.add_parser("inspect", help="print a run's samples")
    inspect.add_argument("run_name", metavar="RUN")
    inspect.add_argument("--step", type=int, help="default: the last one")
    inspect.add_argument("--limit", type=int, default=3, help="groups to print")
    inspect.add_argument("--only", choices=("right", "wrong", "unscorable"))
    inspect.set_defaults(run=_inspect)

    doctor = commands.add_parser("doctor", help="check this machine and say how to mend what would fail")
    doctor.set_defaults(run=_doctor)

    add_data_commands(commands)

    add_cluster_commands(commands)

    demo = commands.add_parser("demo", help="make a tiny model and teach it to add")
    demo.set_defaults(run=_demo)
    return parser


def _train(options: argparse.Namespace) -> int:
    content = read_content(options.recipe, options.overrides)
    if "stage" not in content and (names := stage_names(content)):
        return _train_stages(options, str(content.get("name")), names)
    recipe = load_recipe(options.recipe, options.overrides)
    directory = RunDirectory(recipe.directory)
    resume = options.resume or (options.auto_resume and directory.has_checkpoint)
    if not options.dry_run:
        directory.check(resume, options.auto_resume)
        check_recipe(recipe)
    _environment(recipe)
    from volley.cluster.recipe.build import build, plan_text

    parts = build(recipe)
    if options.dry_run:
        print(plan_text(parts))
        return 0
    from volley.cluster.cli.launchers import make_launcher
    from volley.cluster.run.training import Training

    try:
        asyncio.run(Training(parts, make_launcher(parts, _say), directory, _say).run(resume))
    finally:
        directory.close()
    return 0


def _train_stages(options: argparse.Namespace, run: str, names: Sequence[str]) -> int:
    """All stages in turn. What can be wrong in any of them is said before the first starts."""
    from volley.cluster.recipe.build import build, plan_text

    resume = options.resume or options.auto_resume
    first: Recipe | None = None
    for name in names:
        recipe = load_recipe(options.recipe, [*options.overrides, f"stage={name}"])
        if not resume and not options.dry_run:
            RunDirectory(recipe.directory).check(False, False)
        if first is None and not options.dry_run:
            check_recipe(recipe)
        # The model of an earlier stage is not there yet; it will be like the first one's.
        parts = build(recipe if first is None else dataclasses.replace(recipe, model=first.model))
        first = first or recipe
        if options.dry_run:
            print(plan_text(parts))
    arguments = [options.recipe, *options.overrides]
    return 0 if options.dry_run else train_all(names, run, arguments, resume, RUNS)


def _evaluate(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    if not recipe.data.test:
        raise ConfigError("eval needs test data; add data.test to the recipe or give data.test=FILE.")
    _environment(recipe)
    from volley.cluster.recipe.build import build
    from volley.cluster.run.evaluate_model import evaluate_model

    result = asyncio.run(evaluate_model(build(recipe)))
    if options.json:
        print(json.dumps({name: None if value != value else value for name, value in result.metrics.items()}))
        return 0
    width = max(map(len, result.metrics))
    for name, value in result.metrics.items():
        print(f"{name:<{width}}  {value:.4g}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from volley.cluster.report.report import write_report

    print(write_report(find_run(options.run_name)))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from volley.cluster.report.inspect_run import inspect

    inspect(find_run(options.run_name), options.step, options.limit, options.only)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from volley.cluster.cli.doctor import print_checks, run_checks

    return print_checks(run_checks())


def _demo(options: argparse.Namespace) -> int:
    from volley.cluster.cli.demo import demo

    return demo()


def _environment(recipe: Recipe) -> None:
    from volley.cluster.launch.environment import prepare_environment

    prepare_environment(recipe)
    if recipe.launcher == "ray":
        prepare_token(recipe)


def _say(text: str) -> None:
    print(text, flush=True)
