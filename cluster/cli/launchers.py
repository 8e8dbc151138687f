"""The launcher that a recipe names. The only place that knows all launchers."""

from collections.abc import Callable

from volley.cluster.launch.local import LocalLauncher
from volley.cluster.launch.protocol import Launcher
from volley.cluster.recipe.prepare import RunParts


def make_launcher(parts: RunParts, notify: Callable[[str], None]) -> Launcher:
    """Create the launcher of the recipe. It starts nothing yet."""
    if parts.recipe.launcher == "ray":
        from volley.cluster.on_ray.launcher import RayLauncher

        return RayLauncher(parts, notify)
    return LocalLauncher(parts, notify)
