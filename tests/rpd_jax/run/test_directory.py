import functools
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from rpd_jax import settings
from rpd_jax.errors import UserError
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.directory import check_run, open_run, read_run_config
from rpd_jax.run.lock import hold
from rpd_jax.training_run.fields import TRAINING, default_workdir


def make_config(learning_rate=3e-4, workers=2):
    return ConfigDict(
        {"seed": 0, "algorithm": "ppo", "ppo": {"learning_rate": learning_rate}, "env": {"workers": workers}}
    )


def test_a_new_run_holds_its_config(tmp_path):
    workdir = open_run(tmp_path / "runs" / "a", make_config(), TRAINING)
    assert json.loads((workdir / "config.json").read_text())["ppo"]["learning_rate"] == 3e-4


def test_the_same_config_opens_it_again_also_with_other_workers(tmp_path):
    open_run(tmp_path / "a", make_config(workers=2), TRAINING)
    assert open_run(tmp_path / "a", make_config(workers=1), TRAINING) == tmp_path / "a"


def test_another_config_is_refused_with_the_difference(tmp_path):
    open_run(tmp_path / "a", make_config(), TRAINING)
    with pytest.raises(UserError, match=r"ppo\.learning_rate: 0\.0003 there, 0\.001 now"):
        open_run(tmp_path / "a", make_config(learning_rate=1e-3), TRAINING)


def test_a_run_of_a_version_without_a_setting_continues_if_the_setting_is_left_alone(tmp_path):
    open_run(tmp_path / "a", make_config(), TRAINING)
    config = make_config()
    config.teacher = ConfigDict({"refresh": "rollout"})
    open_run(tmp_path / "a", config, TRAINING)
    config.teacher.refresh = "epoch"
    with pytest.raises(UserError, match=r"teacher\.refresh: 'rollout' there, 'epoch' now"):
        open_run(tmp_path / "a", config, TRAINING)


def test_what_a_run_of_before_lacks_is_filled_in_and_is_no_difference(tmp_path):
    config = settings.resolve(default.get_config())
    stood_for = {name: value for name, value in TRAINING.added.items() if not isinstance(value, dict | list)}
    config.update_from_flattened_dict(stood_for)
    old = json.loads(config.to_json())
    for name in TRAINING.added:
        *parts, field = name.split(".")
        group = functools.reduce(lambda part, key: part.get(key, {}), parts, old)
        group.pop(field, None)
    open_run(tmp_path / "run", config, TRAINING)
    (tmp_path / "run" / "config.json").write_text(json.dumps(old))
    open_run(tmp_path / "run", config, TRAINING)
    found = read_run_config(tmp_path / "run", TRAINING)
    assert json.loads(found.to_json()) == json.loads(config.to_json())
    settings.check(found)


def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(UserError, match="no run"):
        open_run(tmp_path, make_config(), TRAINING)
    assert (tmp_path / "thesis.tex").read_text() == "dear reader"


def test_default_name_tells_what_runs():
    config = ConfigDict({"algorithm": "rpd_mse", "seed": 3, "refine": "pixels", "student": {"observation": "state"}})
    assert str(default_workdir("configs/push_cube_sparse.py", config)) == "runs/push_cube_sparse-rpd_mse-state-seed3"
    config.student.observation, config.refine = "rgb", "state"
    expected = "runs/push_cube_sparse-rpd_mse-refine_state-seed3"
    assert str(default_workdir("configs/push_cube_sparse.py", config)) == expected


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: choose another --workdir"):
        open_run(tmp_path / "file", make_config(), TRAINING)


@pytest.mark.parametrize("name", ["lr[3]", "what?", "*", "a\\b"])
def test_a_path_that_is_a_pattern_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(UserError, match="in its path, which the checkpoints' library takes for a pattern: choose"):
        check_run(tmp_path / name / "run", make_config(), TRAINING)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_below_a_path_of_odd_letters_are_read_again(tmp_path):
    folder = tmp_path / "a b #c%20&d, {e} $^$ |:f:; 'g' + \u7acb\u65b9=1~"
    check_run(folder, make_config(), TRAINING)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(3, {"a": np.arange(3.0)}, {"b": 4})
    checkpoints.close()
    step, state, progress = Checkpoints(folder, keep=1).restore({"a": np.zeros(3)})
    assert (step, progress) == (3, {"b": 4}) and np.array_equal(state["a"], np.arange(3.0))


def test_a_start_that_failed_before_it_made_a_run_leaves_the_directory_usable(tmp_path):
    with hold(tmp_path):
        pass
    open_run(tmp_path, make_config(), TRAINING)
