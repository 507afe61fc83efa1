"""A ManiSkill task whose only observation camera is the camera that humans watch it through."""

import dataclasses
import functools
import importlib

import gymnasium as gym
import mani_skill.envs  # noqa: F401  (registers the tasks)
import sapien
import torch
from mani_skill.sensors.camera import CameraConfig, parse_camera_configs
from mani_skill.utils import sapien_utils
from mani_skill.utils.registration import REGISTERED_ENVS, TimeLimitWrapper

from rpd_jax.action_convention import CONTROL_MODE
from rpd_jax.envs.backdrop import Backdrop
from rpd_jax.envs.mesh_detail import reduce_mesh_detail
from rpd_jax.envs.quick_panda import make_quick
from rpd_jax.envs.shaders import knows_marks, rgba_shader
from rpd_jax.envs.task_arguments import check_task_arguments
from rpd_jax.envs.visible_triangles import VisibleTriangles
from rpd_jax.errors import UserError
from rpd_jax.tasks import Task

CAMERA_NAME = "human_camera"

# Actors that ManiSkill's own tasks leave where they are.
_STILL = ("ground", "table-workspace")

# Pixels: in frames of this size it costs as much to tell which triangles can be seen as to draw all.
_LARGEST_WITH_TINY_TRIANGLES = 512


@dataclasses.dataclass(frozen=True)
class CameraChange:
    """How the observation camera differs from the task's human camera.

    Attributes:
        eye_offset: metres added to the camera's position, world axes.
        target_offset: metres added to the point that it looks at.
        fov: vertical field of view in radians; None keeps the task's (1 rad).
    """

    eye_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    target_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fov: float | None = None


class _HumanCameraTask:
    """Mixin over a ManiSkill task class; see `make_task_env`."""

    def __init__(
        self,
        *args,
        image_size: int,
        look_at,
        camera_change: CameraChange,
        mesh_detail: float,
        still: tuple[str, ...],
        **kwargs,
    ):
        self._image_size = image_size
        self._look_at = look_at
        self._camera_change = camera_change
        self._mesh_detail = mesh_detail
        self._still = still
        self.drawing = True  # False: observations hold the state alone
        super().__init__(*args, **kwargs)

    @property
    def _default_sensor_configs(self):
        (human,) = parse_camera_configs(super()._default_human_render_camera_configs).values()
        change = self._camera_change
        pose = human.pose
        if any(change.eye_offset) or any(change.target_offset):
            eye = pose.p[0] + torch.tensor(change.eye_offset)
            target = torch.tensor(self._look_at) + torch.tensor(change.target_offset)
            pose = sapien_utils.look_at(eye, target)
        return [
            CameraConfig(
                CAMERA_NAME,
                pose=pose,
                width=self._image_size,
                height=self._image_size,
                fov=human.fov if change.fov is None else change.fov,
                near=human.near,
                far=human.far,
                shader_config=rgba_shader(self.scene, self._marks, bool(self._still)),
            )
        ]

    @property
    def _default_human_render_camera_configs(self):
        return {}

    def _load_agent(self, *args, **kwargs):
        super()._load_agent(*args, **kwargs)
        if self.num_envs == 1 and not self.gpu_sim_enabled:
            make_quick(self.agent)

    def _load_scene(self, options: dict):
        super()._load_scene(options)
        # Sensors do not see hidden objects; PickCube's goal is one and the policy needs it.
        self._hidden_objects = []
        if self._mesh_detail < 1.0:
            reduce_mesh_detail(self.scene, self._mesh_detail, self._marks)
        self._backdrop = None
        self._visible_triangles = None

    @property
    def _marks(self) -> bool:
        """True if the shaders draw marked materials."""
        return self.backend.render_device.is_cpu() and knows_marks()

    @property
    def _has_tiny_triangles(self) -> bool:
        """True where most of the robot's are too small to be seen; those that cast shadows count nevertheless."""
        tiny = self._mesh_detail == 1.0 and self._image_size <= _LARGEST_WITH_TINY_TRIANGLES
        return tiny and self._marks and bool(self._still) and not self.enable_shadow

    def _setup_sensors(self, options: dict):
        super()._setup_sensors(options)
        for name in self._agent_sensor_configs:
            del self._sensors[name]

    def get_sensor_params(self):
        return {}

    def _get_obs_sensor_data(self, apply_texture_transforms: bool = True):
        if not self.drawing:
            return {}
        if self._has_tiny_triangles:
            if self._visible_triangles is None:
                (camera,) = self._sensors[CAMERA_NAME].camera._render_cameras
                self._visible_triangles = VisibleTriangles(self.scene, camera)
            self._visible_triangles.select()
        draw = functools.partial(super()._get_obs_sensor_data, apply_texture_transforms)
        data = draw()
        if self._marks and self._still:
            if self._backdrop is None:
                self._backdrop = Backdrop(self.scene, self._still)
            camera = data[CAMERA_NAME]
            camera["rgba"] = self._backdrop.behind(camera["rgba"], lambda: draw()[CAMERA_NAME]["rgba"])
        return data

    def _get_obs_agent(self):
        return super()._get_obs_agent() if self.obs_mode_struct.state else {}

    def _get_obs_extra(self, info: dict):
        return super()._get_obs_extra(info) if self.obs_mode_struct.state else {}


@functools.cache
def _task_class(env_id: str) -> type:
    task = REGISTERED_ENVS[env_id].cls
    return type(f"{task.__name__}ThroughHumanCamera", (_HumanCameraTask, task), {})


def make_task_env(
    env_id: str,
    image_size: int = 256,
    reward_mode: str = "sparse",
    *,
    num_envs: int = 1,
    sim_backend: str = "physx_cpu",
    render_backend: str = "cpu",
    mesh_detail: float = 1.0,
    camera: CameraChange | None = None,
    with_state: bool = True,
    enhanced_determinism: bool | None = None,
    max_episode_steps: int | None = None,
) -> gym.Env:
    """Makes one ManiSkill environment (batched over `num_envs`) that observes the task through its human camera.

    The picture is what `env.render()` of the unmodified task shows, at `image_size`, goal markers included; no other
    camera is rendered. Observations are read with `frames(obs)` and `states(obs)`. Actions: float32 [num_envs, 7] in
    [-1, 1], mode pd_ee_delta_pose. Values returned by `step` are torch tensors [num_envs]; the reward is bool in
    reward mode sparse.

    Args:
        env_id: one of rpd_jax.tasks.TASKS.
        image_size: width and height, pixels.
        reward_mode: "sparse" (1 on each step that ends in success) or "normalized_dense".
        num_envs: more than 1 needs `sim_backend="physx_cuda"`.
        sim_backend, render_backend: ManiSkill's names.
        mesh_detail: fraction of the robot's triangles kept, in (0, 1]; 1 is exact.
        camera: change of the view; None is the task's own.
        with_state: observe the flat privileged state too (joint positions and velocities, tool, goal, objects).
        enhanced_determinism: episodes after the first follow from the reset seed alone. None: True for one
            environment. With several, ManiSkill 3.0.1 draws every partial reset from environment 0's seed, which
            repeats initial states, so there the default is False and torch's global generator decides.
        max_episode_steps: None is the task's limit.

    Raises:
        UserError: unknown task, reward mode, a value out of range, or no Vulkan device to draw with.
    """
    task = check_task_arguments(env_id, image_size, reward_mode, mesh_detail)
    if task.module:
        _register(task)
    _check_renderer()
    env = _task_class(env_id)(
        **REGISTERED_ENVS[env_id].default_kwargs,
        num_envs=num_envs,
        obs_mode="rgb+state" if with_state else "rgb",
        reward_mode=reward_mode,
        control_mode=CONTROL_MODE,
        sim_backend=sim_backend,
        render_backend=render_backend,
        enhanced_determinism=num_envs == 1 if enhanced_determinism is None else enhanced_determinism,
        image_size=image_size,
        look_at=task.look_at,
        camera_change=camera or CameraChange(),
        mesh_detail=mesh_detail,
        # What a task from elsewhere does with them is not known.
        still=() if task.module else _STILL,
    )
    return TimeLimitWrapper(env, task.max_episode_steps if max_episode_steps is None else max_episode_steps)


def _register(task: Task) -> None:
    try:
        importlib.import_module(task.module)
    except ImportError as error:
        raise UserError(
            f"{task.module!r}, which {task.env_id} names, cannot be imported ({error}): mend it."
        ) from error
    if task.env_id not in REGISTERED_ENVS:
        raise UserError(f"{task.module!r} does not register {task.env_id} with ManiSkill: mend that package.")


@functools.cache
def _check_renderer() -> None:
    try:
        sapien.render.RenderSystem()
    except RuntimeError as error:
        raise UserError(
            "No usable Vulkan device to draw camera frames with: install a GPU driver with Vulkan, or Mesa >= 24.3 with"
            f" its software Vulkan (lavapipe) by running `make setup` (SAPIEN says: {error})."
        ) from error


def set_drawing(env: gym.Env, on: bool) -> dict:
    """Draws the frames of what `make_task_env` made from now on, or none; returns the observation of this moment."""
    env.unwrapped.drawing = on
    return env.unwrapped.get_obs()


def frames(obs: dict) -> torch.Tensor | None:
    """Returns the observed frames, uint8 [N, H, W, 4] (the fourth is alpha); on a GPU valid until the next step.

    None where none were drawn.
    """
    camera = obs["sensor_data"].get(CAMERA_NAME)
    return None if camera is None else camera["rgba"]


def states(obs: dict) -> torch.Tensor:
    """Returns the flat privileged states, float32 [N, D]; needs `with_state=True`."""
    return obs["state"]
