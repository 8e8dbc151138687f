"""Packages in the working directory that hide the installed volley are refused."""

from pathlib import Path

import pytest

import volley
from volley.cluster.on_ray.working_directory import check_working_directory
from volley.rollout.errors import ConfigError


@pytest.mark.parametrize("name", ["volley/__init__.py", "volley.py"])
def test_package_of_the_user_that_hides_the_installed_one_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "cluster.py").write_text("")
    (tmp_path / "rewards.py").write_text("")
    (tmp_path / "volley").mkdir()
    check_working_directory(tmp_path)
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=rf"would import .*{name} instead of the installed volley"):
        check_working_directory(tmp_path)


def test_repository_that_is_the_installed_package_is_accepted() -> None:
    check_working_directory(Path(volley.__file__).parent.parent)
