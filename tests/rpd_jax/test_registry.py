"""What packages offer by name is checked where it is looked up."""

import pytest

from rpd_jax import registry
from rpd_jax.errors import UserError
from rpd_jax.tasks import Task, find_task

CACHES = (registry.names, registry.load, registry._entries)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that offers a task, and two things that are none."""
    (tmp_path / "a_package.py").write_text(
        "from rpd_jax.tasks import Task\nGOOD, OTHER, BAD = Task('Good-v1', 'push'), Task('Other-v1', 'push'), 3\n"
    )
    info = tmp_path / "a_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1.0\n")
    offers = "Good-v1 = a_package:GOOD\nRenamed-v1 = a_package:OTHER\nBad-v1 = a_package:BAD\n"
    (info / "entry_points.txt").write_text(f"[rpd_jax.tasks]\n{offers}")
    monkeypatch.syspath_prepend(tmp_path)
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


def test_what_is_of_another_kind_is_refused(package):
    assert find_task("Good-v1") == registry.load("rpd_jax.tasks", "Good-v1", Task) == Task("Good-v1", "push")
    with pytest.raises(UserError, match=r"'Bad-v1' of rpd_jax\.tasks is 3 and not a Task: mend the package"):
        find_task("Bad-v1")
    with pytest.raises(UserError, match=r"'Renamed-v1' of rpd_jax\.tasks is Task.* and not the Task of that name"):
        find_task("Renamed-v1")
