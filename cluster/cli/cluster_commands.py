"""The commands of `volley` that have to do with a Ray cluster: start and stop one, submit, watch and scale runs."""

import argparse
from typing import Any

from volley.cluster.on_ray.token import prepare_token
from volley.cluster.recipe.config import load_recipe
from volley.rollout.errors import ConfigError

ALLOW = "also on a cluster that asks nobody for a token"


def add_cluster_commands(commands: Any) -> None:
    """To the subcommands of an `argparse` parser."""
    up = commands.add_parser("up", help="start a Ray head on this machine, safely")
    up.add_argument("--port", type=int, default=6379)
    up.add_argument("--dashboard-port", type=int, default=8265)
    up.add_argument("--metrics-port", type=int, default=8080)
    up.add_argument("--num-cpus", type=int, help="default: what the machine has")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="stop Ray on this machine")
    down.set_defaults(run=_down)

    submit = commands.add_parser("submit", help="train by a recipe as a Ray job")
    submit.add_argument("recipe", help="a YAML file, below the working directory")
    submit.add_argument("overrides", nargs="*", metavar="key=value")
    submit.add_argument("--runs", default="", help="where runs lie on the cluster (default: this machine's runs/)")
    submit.add_argument("--no-follow", action="store_true", help="return at once instead of printing the log")
    submit.set_defaults(run=_submit)

    for name, what in (("status", "say what a submitted run does"), ("stop", "save and stop a submitted run")):
        command = commands.add_parser(name, help=what)
        command.add_argument("run_name", metavar="RUN")
        command.add_argument("--allow-unauthenticated", action="store_true", help=ALLOW)
        command.set_defaults(run=_status if name == "status" else _stop)

    scale = commands.add_parser("scale", help="change how many rollout workers a run on a cluster has")
    scale.add_argument("run_name", metavar="RUN")
    scale.add_argument("wanted", metavar="rollouts=N")
    scale.add_argument("--allow-unauthenticated", action="store_true", help=ALLOW)
    scale.set_defaults(run=_scale)

    logs = commands.add_parser("logs", help="print a submitted run's log")
    logs.add_argument("run_name", metavar="RUN")
    logs.add_argument("--follow", action="store_true", help="until it ends")
    logs.add_argument("--allow-unauthenticated", action="store_true", help=ALLOW)
    logs.set_defaults(run=_logs)


def _up(options: argparse.Namespace) -> int:
    from volley.cluster.on_ray.head import up

    up(options.port, options.dashboard_port, options.metrics_port, options.num_cpus)
    return 0


def _down(options: argparse.Namespace) -> int:
    from volley.cluster.on_ray.head import down

    down()
    return 0


def _submit(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    prepare_token()
    from volley.cluster.on_ray.jobs import submit

    return submit(options.recipe, recipe, options.overrides, options.runs, not options.no_follow)


def _status(options: argparse.Namespace) -> int:
    prepare_token()
    from volley.cluster.on_ray.jobs import status

    status(options.run_name, options.allow_unauthenticated)
    return 0


def _stop(options: argparse.Namespace) -> int:
    prepare_token()
    from volley.cluster.on_ray.jobs import stop

    return stop(options.run_name, options.allow_unauthenticated)


def _scale(options: argparse.Namespace) -> int:
    key, _, number = options.wanted.partition("=")
    if key != "rollouts" or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"'{options.wanted}' is not a number of workers; write rollouts=4.")
    prepare_token()
    from volley.cluster.on_ray.jobs import scale

    scale(options.run_name, int(number), options.allow_unauthenticated)
    return 0


def _logs(options: argparse.Namespace) -> int:
    prepare_token()
    from volley.cluster.on_ray.jobs import logs

    return logs(options.run_name, options.follow, options.allow_unauthenticated)
