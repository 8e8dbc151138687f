"""The `volley` commands for Ray clusters: start and stop Ray, submit, monitor and scale runs."""

import argparse
from typing import Any

from volley.cluster.on_ray.token import prepare_token
from volley.cluster.recipe.config import load_recipe
from volley.rollout.errors import ConfigError

ALLOW_HELP = "accept a remote cluster without token authentication"
RUN_HELP = "name of a submitted run"


def add_cluster_commands(commands: Any) -> None:
    """Add the commands to the subparsers of an `argparse` parser."""
    up = commands.add_parser("up", help="start a Ray head node on this machine with token authentication")
    up.add_argument("--port", type=int, default=6379, help="port of the head node (default: 6379)")
    up.add_argument("--dashboard-port", type=int, default=8265, help="port of dashboard and jobs API (default: 8265)")
    up.add_argument("--metrics-port", type=int, default=8080, help="port of Prometheus metrics (default: 8080)")
    up.add_argument("--num-cpus", type=int, help="CPUs that Ray may use (default: all)")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="stop Ray on this machine")
    down.set_defaults(run=_down)

    submit = commands.add_parser("submit", help="train a model from a recipe as a Ray job")
    submit.add_argument("recipe", help="path of a YAML file inside the working directory")
    submit.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys, e.g. steps=50")
    submit.add_argument("--runs", default="", help="directory of runs on the cluster (default: this machine's runs/)")
    submit.add_argument("--no-follow", action="store_true", help="return immediately instead of streaming the log")
    submit.set_defaults(run=_submit)

    for name, what in (("status", "print the status of a submitted run"), ("stop", "save and stop a submitted run")):
        command = commands.add_parser(name, help=what)
        command.add_argument("run_name", metavar="RUN", help=RUN_HELP)
        command.add_argument("--allow-unauthenticated", action="store_true", help=ALLOW_HELP)
        command.set_defaults(run=_status if name == "status" else _stop)

    scale = commands.add_parser("scale", help="change the number of rollout workers of a submitted run")
    scale.add_argument("run_name", metavar="RUN", help=RUN_HELP)
    scale.add_argument("wanted", metavar="rollouts=N", help="the number of workers, e.g. rollouts=4")
    scale.add_argument("--allow-unauthenticated", action="store_true", help=ALLOW_HELP)
    scale.set_defaults(run=_scale)

    logs = commands.add_parser("logs", help="print the log of a submitted run")
    logs.add_argument("run_name", metavar="RUN", help=RUN_HELP)
    logs.add_argument("--follow", action="store_true", help="stream the log until the run ends")
    logs.add_argument("--allow-unauthenticated", action="store_true", help=ALLOW_HELP)
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
        raise ConfigError(f"'{options.wanted}' is not a valid number of workers; write for example rollouts=4.")
    prepare_token()
    from volley.cluster.on_ray.jobs import scale

    scale(options.run_name, int(number), options.allow_unauthenticated)
    return 0


def _logs(options: argparse.Namespace) -> int:
    prepare_token()
    from volley.cluster.on_ray.jobs import logs

    return logs(options.run_name, options.follow, options.allow_unauthenticated)
