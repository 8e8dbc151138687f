"""Set up Ray's token authentication, before Ray is imported: it reads the environment at its import."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from volley.cluster.recipe.config import Recipe

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
_PREFIX = f"volley-ray-{os.getpid()}-"


def cluster_address(recipe: Recipe) -> str:
    """The address of the cluster that the recipe or RAY_ADDRESS names; "" for a private cluster."""
    address = recipe.cluster.address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def has_token() -> bool:
    """Whether there is a token in the environment or in a file that Ray reads."""
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE.exists())


def read_token() -> str:
    """The token that Ray would use; "" if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).read_text().strip()
    except OSError:
        return ""


def prepare_token(recipe: Recipe | None = None) -> None:
    """Turn authentication on if there is a token. For a recipe that starts a private cluster, create a token first, in
    a file that only this user can read."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    if recipe is not None and not has_token() and not cluster_address(recipe):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX)) / "token"
        write_token(path)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    if has_token():
        os.environ["RAY_AUTH_MODE"] = "token"


def own_token() -> Path | None:
    """The file of the token that `prepare_token` created for a private cluster; None if it created none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", ""))
    return path if path.parent.name.startswith(_PREFIX) else None


def discard_own_token() -> None:
    """Remove the token that `prepare_token` created, after its cluster has ended."""
    if path := own_token():
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def write_token(path: Path) -> None:
    """Write a new token into a file that has mode 0600 from the start (the file that Ray creates is world-readable)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
