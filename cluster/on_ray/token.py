"""Ray's token authentication, set up before Ray is imported: it reads the environment once, at its import."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from volley.cluster.recipe.config import Recipe

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
_PREFIX = f"volley-ray-{os.getpid()}-"


def cluster_address(recipe: Recipe) -> str:
    """Of the cluster that the recipe or RAY_ADDRESS names; "" for a private one."""
    address = recipe.cluster.address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def has_token() -> bool:
    """Whether a token is set or lies where Ray looks for it."""
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE.exists())


def read_token() -> str:
    """The token, from where Ray would take it; "" where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).read_text().strip()
    except OSError:
        return ""


def prepare_token(recipe: Recipe | None = None) -> None:
    """Turn authentication on where a token is at hand. With a recipe that is to start a private cluster, make one that
    only this user can read."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    if recipe is not None and not has_token() and not cluster_address(recipe):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX)) / "token"
        write_token(path)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    if has_token():
        os.environ["RAY_AUTH_MODE"] = "token"


def own_token() -> Path | None:
    """The token that `prepare_token` made for a private cluster; None where it made none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", ""))
    return path if path.parent.name.startswith(_PREFIX) else None


def discard_own_token() -> None:
    """Remove what `prepare_token` made, once its cluster is gone."""
    if path := own_token():
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def write_token(path: Path) -> None:
    """A new token, mode 0600 from the start (Ray's own file is readable by all)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
