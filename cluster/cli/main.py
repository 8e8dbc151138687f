"""The `volley` command. Each subcommand is a few lines here that call the module that implements it."""

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from volley.cluster.cli.cluster_commands import add_cluster_commands
from volley.cluster.cli.data_commands import add_data_commands
from volley.cluster.on_ray.probe import check_recipe
from volley.cluster.on_ray.token import discard_own_token, prepare_token
from volley.cluster.recipe.config import RUNS, Recipe, load_recipe, read_content
from volley.cluster.recipe.stages import stage_names, train_all
from volley.cluster.storage.directory import RunDirectory, find_run
from volley.rollout.errors import ConfigError, VolleyError

DISTRIBUTION = "volley-rl"
EXIT_CODES = """exit codes: 0 success, 1 the run failed, 2 usage or configuration, 3 data, 4 checkpoint,
5 model, 6 reward, 130 interrupted"""


def program() -> None:
    """The entry point of the `volley` command."""
    code = main()
    discard_own_token()
    sys.stdout.flush()
    sys.stderr.flush()
    # Exit handlers of vLLM and DeepSpeed can hang or abort, although all work is saved at this point.
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, return its exit code."""
    try:
        options = _parse(arguments)
        return int(options.run(options))
    except BaseException as error:
        return report_error(error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; unlike plain argparse, overrides may come before and after flags."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in each and not each.startswith("-") for each in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def report_error(error: BaseException) -> int:
    """Print an error and return its exit code: one sentence for errors that users can fix, otherwise a traceback."""
    if isinstance(error, BaseExceptionGroup):
        # One failure can surface in several tasks. Print the error that is meant for users last.
        expected, unexpected = error.split((VolleyError, FloatingPointError, TimeoutError))
        if expected is not None and unexpected is not None:
            sys.excepthook(type(unexpected), unexpected, unexpected.__traceback__)
        if expected is not None or len(error.exceptions) == 1:
            return report_error((expected or error).exceptions[0])
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


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="volley",
        description="Post-train language models with online reinforcement learning and preference learning.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"volley {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a model from a recipe")
    train.add_argument("recipe", help="path of a YAML file, or the name of a shipped recipe")
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override recipe keys, e.g. steps=50 learner.lr=1e-5"
    )
    train.add_argument("--resume", action="store_true", help="resume from the run's latest checkpoint")
    train.add_argument(
        "--auto-resume", action="store_true", help="resume if the run has a checkpoint, otherwise start it"
    )
    train.add_argument("--dry-run", action="store_true", help="validate the recipe and print the plan without training")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="evaluate a model on a recipe's test data and rewards")
    evaluate.add_argument("recipe", help="path of a YAML file, or the name of a shipped recipe")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override recipe keys, e.g. model=runs/demo/model"
    )
    evaluate.add_argument("--json", action="store_true", help="print the metrics as one JSON object")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="write the HTML report of a run")
    report.add_argument("run_name", metavar="RUN", help="name of a run in runs/, or a directory")
    report.set_defaults(run=_report)

    inspect = commands.add_parser("inspect", help="print samples of a run")
    inspect.add_argument("run_name", metavar="RUN", help="name of a run in runs/, or a directory")
    inspect.add_argument("--step", type=int, help="training step (default: the last one)")
    inspect.add_argument("--limit", type=int, default=3, help="number of groups to print (default: 3)")
    inspect.add_argument("--only", choices=("right", "wrong", "unscorable"), help="print only these completions")
    inspect.set_defaults(run=_inspect)

    doctor = commands.add_parser("doctor", help="check the installation and suggest fixes")
    doctor.set_defaults(run=_doctor)

    add_data_commands(commands)

    add_cluster_commands(commands)

    demo = commands.add_parser("demo", help="train a tiny model to add numbers, in minutes on a CPU")
    demo.set_defaults(run=_demo)
    return parser


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return f"({DISTRIBUTION} is not installed)"


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
    _prepare_environment(recipe)
    from volley.cluster.recipe.dry_run import plan_text
    from volley.cluster.recipe.prepare import prepare

    parts = prepare(recipe)
    if options.dry_run:
        print(plan_text(parts))
        return 0
    from volley.cluster.cli.launchers import make_launcher
    from volley.cluster.run.training import Training

    try:
        asyncio.run(Training(parts, make_launcher(parts, _print_line), directory, _print_line).run(resume))
    finally:
        directory.close()
    return 0


def _train_stages(options: argparse.Namespace, run: str, names: Sequence[str]) -> int:
    """Train all stages in order. All of them are validated before the first one starts."""
    from volley.cluster.recipe.dry_run import plan_text
    from volley.cluster.recipe.prepare import prepare

    resume = options.resume or options.auto_resume
    first: Recipe | None = None
    for name in names:
        recipe = load_recipe(options.recipe, [*options.overrides, f"stage={name}"])
        if not resume and not options.dry_run:
            RunDirectory(recipe.directory).check(False, False)
        if first is None and not options.dry_run:
            check_recipe(recipe)
        # The model of an earlier stage does not exist yet; it will have the files of the first stage's model.
        parts = prepare(recipe if first is None else dataclasses.replace(recipe, model=first.model))
        first = first or recipe
        if options.dry_run:
            print(plan_text(parts))
    arguments = [options.recipe, *options.overrides]
    return 0 if options.dry_run else train_all(names, run, arguments, resume, RUNS)


def _evaluate(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    if not recipe.data.test:
        raise ConfigError("eval needs test data; add data.test to the recipe or pass data.test=FILE.")
    _prepare_environment(recipe)
    from volley.cluster.recipe.prepare import prepare
    from volley.cluster.run.evaluate_model import evaluate_model

    result = asyncio.run(evaluate_model(prepare(recipe)))
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


def _prepare_environment(recipe: Recipe) -> None:
    from volley.cluster.launch.environment import prepare_environment

    prepare_environment(recipe)
    if recipe.launcher == "ray":
        prepare_token(recipe)


def _print_line(text: str) -> None:
    print(text, flush=True)
