"""What a user can mend: one sentence (what, where, how), one exit code each.

Anything else that goes wrong is a bug or the machine, and propagates with its traceback.
"""

from collections.abc import Mapping


class VolleyError(ValueError):
    """An error whose message is one clear sentence for the user; the CLI prints it without a traceback."""

    exit_code = 1


class ConfigError(VolleyError):
    """Usage and configuration: an unknown key, a wrong type, a number out of range, a run directory in use."""

    exit_code = 2


class DataError(VolleyError):
    """The data set: a missing file or column, a broken line, a null prompt."""

    exit_code = 3


class CheckpointError(VolleyError):
    """A checkpoint that is missing, torn, or of another run."""

    exit_code = 4


class ModelError(VolleyError):
    """The model directory, or a parity between learner and engine that is out of bounds."""

    exit_code = 5


class RewardError(VolleyError):
    """A reward that cannot be imported or has the wrong signature."""

    exit_code = 6


class LostError(VolleyError):
    """Something that a run cannot do without is gone: a process, a link. The message names it and the phase."""

    exit_code = 1


class EngineLost(LostError):
    """An engine is lost for good; the message names it and the phase in which it was lost."""


def require_at_least(section: object, bounds: Mapping[str, float], where: str = "") -> None:
    """Raise `ConfigError` for the first attribute of `section` below its bound; `where` comes before its name."""
    for name, least in bounds.items():
        value = getattr(section, name)
        if value < least:
            raise ConfigError(f"{where}{name} is {value}; it must be at least {least}.")
