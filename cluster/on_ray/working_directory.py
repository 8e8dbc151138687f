"""Keep modules in the user's working directory from hiding the installed package in Ray's workers."""

from pathlib import Path

import volley
from volley.rollout.errors import ConfigError

SHADOWING_FILES = ["/volley/__init__.py", "/volley.py"]
"""Files in the working directory, the first entry of Python's path in Ray's workers, that hide the installed volley."""


def check_working_directory(directory: Path) -> None:
    """Raises `ConfigError` if Ray's workers would import another package named volley from the working directory."""
    installed = Path(volley.__file__).resolve()
    for name in SHADOWING_FILES:
        found = directory / name.lstrip("/")
        if found.exists() and found.resolve() != installed:
            raise ConfigError(
                f"Ray's workers would import {found} instead of the installed volley ({installed.parent}); rename it, "
                "or start the run in another directory."
            )
