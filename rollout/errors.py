"""Errors that a user can fix. Each has one sentence (what, where, how to fix it) and an exit code.

All other errors are bugs or failures of the machine, and propagate with their traceback.
"""

from collections.abc import Mapping


class VolleyError(ValueError):
    """An error whose message is one clear sentence for the user; the CLI prints it without a traceback."""

    exit_code = 1


class ConfigError(VolleyError):
    """Wrong usage or configuration: an unknown key, a wrong type, a number out of range, a run directory in use."""

    exit_code = 2


class DataError(VolleyError):
    """A problem with the data set: a missing file or column, a broken line, a null prompt."""

    exit_code = 3


class CheckpointError(VolleyError):
    """A checkpoint that is missing, incomplete, or from another run."""

    exit_code = 4


class ModelError(VolleyError):
    """A problem with the model directory, or learner and engine differ by more than the parity bound."""

    exit_code = 5


class RewardError(VolleyError):
    """A reward that cannot be imported or has the wrong signature."""

    exit_code = 6


class LostError(VolleyError):
    """The run lost something that it needs, such as a process or a connection. The message names it and the phase."""

    exit_code = 1


class EngineLost(LostError):
    """An engine is lost for good; the message names it and the phase in which it was lost."""


def require_at_least(section: object, bounds: Mapping[str, float], where: str = "") -> None:
    """Raise `ConfigError` for the first attribute of `section` below its bound. where: prefix of its name."""
    for name, least in bounds.items():
        value = getattr(section, name)
        if value < least:
            raise ConfigError(f"{where}{name} is {value}; it must be at least {least}.")
