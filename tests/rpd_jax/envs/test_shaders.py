"""Frames are drawn without the table of reflections, which only an environment map needs. (That they are ManiSkill's
own: test_camera_task.py.)
"""

from pathlib import Path

import numpy as np
import pytest
import sapien.render
from PIL import Image

from rpd_jax.envs import shaders
from rpd_jax.envs.camera_task import frames, make_task_env


@pytest.fixture(scope="module")
def env():
    env = make_task_env("PushCube-v1", 16, mesh_detail=0.07)
    yield env
    env.close()


def pack_of(env):
    return env.unwrapped.scene.sensors["human_camera"].config.shader_config.shader_pack


def test_no_shader_of_the_camera_knows_the_table(env):
    folder = Path(pack_of(env))
    assert folder.is_dir() and folder.name == "minimal"
    own = {file.name: file.read_text() for file in folder.iterdir()}
    sapiens = Path(sapien.__file__).parent / "vulkan_shader" / "minimal"
    assert set(own) == {file.name for file in sapiens.iterdir()}
    assert not any("BRDF" in line and "sampler" in line for text in own.values() for line in text.splitlines())


def test_with_an_environment_map_the_table_counts(env, tmp_path):
    """Also that a camera is made anew by a reset that builds the scene anew."""
    picture = tmp_path / "sky.png"
    Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(picture)
    sky = sapien.render.RenderCubemap(*[str(picture)] * 6)
    (scene,) = env.unwrapped.scene.sub_scenes
    dark = frames(env.reset(seed=0)[0]).numpy()
    scene.render_system.cubemap = sky
    assert shaders.rgba_shader(env.unwrapped.scene).shader_pack == "minimal"
    scene.render_system.cubemap = None
    assert shaders.rgba_shader(env.unwrapped.scene).shader_pack == pack_of(env)
    obs, _ = env.reset(seed=0, options={"reconfigure": True})
    np.testing.assert_array_equal(frames(obs).numpy(), dark)


def test_shaders_that_are_not_those_we_know_or_cannot_be_kept_are_sapiens(monkeypatch, tmp_path):
    own = Path(shaders._without_table.__wrapped__())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = Path(shaders._without_table.__wrapped__())
    assert kept.is_relative_to(tmp_path) and kept.relative_to(tmp_path / "cache").parts == own.parts[-4:]
    assert shaders._without_table.__wrapped__() == str(kept), "the second process finds what the first one kept"
    assert [path.name for path in kept.parent.parent.iterdir()] == [kept.parent.name]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert shaders._without_table.__wrapped__() == "minimal"
    monkeypatch.setattr(shaders, "_LOOK_UP", "another look-up")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert shaders._without_table.__wrapped__() == "minimal"
