"""Frames are drawn by shaders that do less, and of what stands still only once. (That they are ManiSkill's own, bit for
bit: test_camera_task.py.)
"""

from pathlib import Path

import numpy as np
import pytest
import sapien.render
from PIL import Image

from rpd_jax.envs import camera_task, shaders
from rpd_jax.envs.camera_task import frames, make_task_env, set_drawing


@pytest.fixture(scope="module")
def env():
    env = make_task_env("PushCube-v1", 16, mesh_detail=0.07)
    yield env
    env.close()


def pack_of(env):
    return env.unwrapped.scene.sensors["human_camera"].config.shader_config.shader_pack


def test_the_cameras_shaders_are_sapiens_without_what_no_frame_shows(env):
    folder = Path(pack_of(env))
    assert folder.is_dir() and folder.name == "minimal"
    own = {file.name: file.read_text() for file in folder.iterdir()}
    sapiens = Path(sapien.__file__).parent / "vulkan_shader" / "minimal"
    assert set(own) == {file.name for file in sapiens.iterdir()} - {"composite.vert", "composite0.frag"}
    assert not any("BRDF" in line and "sampler" in line for text in own.values() for line in text.splitlines())
    assert "Segmentation" not in own["gbuffer.vert"]


def test_on_an_accelerator_only_the_table_is_left_out(env):
    folder = Path(shaders.rgba_shader(env.unwrapped.scene).shader_pack)
    sapiens = Path(sapien.__file__).parent / "vulkan_shader" / "minimal"
    for file in sapiens.iterdir():
        left_out = set(file.read_text().splitlines()) - set((folder / file.name).read_text().splitlines())
        assert all("samplerBRDFLUT" in line for line in left_out)
        assert "samplerBRDFLUT" not in (folder / file.name).read_text()


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
    assert shaders.rgba_shader(env.unwrapped.scene, marks=True, still=True).shader_pack == pack_of(env)
    obs, _ = env.reset(seed=0, options={"reconfigure": True})
    np.testing.assert_array_equal(frames(obs).numpy(), dark)


def test_shaders_that_are_not_those_we_know_or_cannot_be_kept_are_sapiens(monkeypatch, tmp_path):
    pack = shaders._pack.__wrapped__
    own = Path(pack(shaders._NO_TABLE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = Path(pack(shaders._NO_TABLE))
    assert kept.is_relative_to(tmp_path) and kept.relative_to(tmp_path / "cache").parts == own.parts[-4:]
    assert pack(shaders._NO_TABLE) == str(kept), "the second process finds what the first one kept"
    assert [path.name for path in kept.parent.parent.iterdir()] == [kept.parent.name]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert pack(shaders._NO_TABLE) == "minimal"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert pack((*shaders._NO_TABLE, shaders.Edit("minimal/gbuffer.frag", "another look-up", ""))) == "minimal"
    assert pack(shaders._NO_TABLE, without=("minimal/another.frag",)) == "minimal"


def robot_pictures(detail=0.15):
    env = make_task_env("PushCube-v1", 64, mesh_detail=detail)
    pictures = [frames(env.reset(seed=seed)[0])[0, ..., :3].numpy().astype(int) for seed in range(2)]
    env.close()
    return np.stack(pictures)


def test_triangles_shaded_by_their_planes_look_as_by_their_normals(monkeypatch):
    """As where SAPIEN's shaders are not those we know: then nothing is marked."""
    marked = robot_pictures()
    monkeypatch.setattr(camera_task, "knows_marks", lambda: False)
    assert np.abs(marked - robot_pictures()).mean() < 0.02


def test_what_stands_still_is_drawn_anew_where_it_was_moved(monkeypatch):
    """The picture behind the rest is that of where the table is, not of where it was."""
    monkeypatch.setattr(camera_task, "_STILL", ())
    alone = make_task_env("PushCube-v1", 64, mesh_detail=0.07)
    monkeypatch.undo()
    ours = make_task_env("PushCube-v1", 64, mesh_detail=0.07)
    pictures = []
    for each in (ours, alone):
        each.reset(seed=0)
        (table,) = each.unwrapped.scene.actors["table-workspace"]._objs
        pose = table.pose
        table.pose = sapien.Pose(pose.p - np.array([0.0, 0.0, 0.3], np.float32), pose.q)
        moved = frames(set_drawing(each, True))[..., :3].numpy().astype(int)
        table.pose = pose
        pictures.append((moved, frames(set_drawing(each, True))[..., :3].numpy().astype(int)))
        each.close()
    assert np.abs(pictures[0][0] - pictures[0][1]).mean() > 1.0
    np.testing.assert_array_equal(pictures[0], pictures[1])
