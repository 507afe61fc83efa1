"""The shaders that frames are drawn with: SAPIEN's "minimal" pack without its table of reflections.

The table (the BRDF of image-based lighting) is computed anew in each process, which costs some seven seconds of a core
in software Vulkan, and weights what an environment map adds to a picture. ManiSkill's tasks have no such map, so that
the weights are multiplied by black and the frames are the same, bit for bit.
"""

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path

import sapien
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.render.shaders import ShaderConfig, set_shader_pack

from rpd_jax.run.cache import cache_folder

_TABLE = "samplerBRDFLUT"
_LOOK_UP = "texture(samplerBRDFLUT, vec2(roughness, dotNV)).xy"


def rgba_shader(scene: ManiSkillScene) -> ShaderConfig:
    """The shaders of a camera in `scene` that gives RGBA alone; its texture is "rgba" uint8 [N, H, W, 4].

    To be called before each camera is made, since SAPIEN keeps the formats of pictures globally.
    """
    minimal = _config("minimal")
    set_shader_pack(minimal)
    if any(each.render_system.cubemap is not None for each in scene.sub_scenes):
        return minimal
    return _config(_without_table())


def _config(pack: str) -> ShaderConfig:
    # ManiSkill's own transform drops alpha and so gives a strided view, which JAX refuses over DLPack.
    return ShaderConfig(
        shader_pack=pack,
        texture_names={"Color": ["rgb"]},
        texture_transforms={"Color": lambda rgba: {"rgba": rgba}},
    )


@functools.cache
def _without_table() -> str:
    """Folder of the shaders, kept for the next process; "minimal" where they are not what we know or cannot be kept."""
    packs = Path(sapien.__file__).parent / "vulkan_shader"
    try:
        texts = {
            str(file.relative_to(packs)): _drop_table(file.read_text())
            for folder in ("common", "minimal")
            for file in sorted((packs / folder).iterdir())
        }
        if not texts or any(_TABLE in text for text in texts.values()):
            return "minimal"
        return str(_kept(texts) / "minimal")
    except (OSError, UnicodeDecodeError):
        return "minimal"


def _drop_table(shader: str) -> str:
    shader = shader.replace(_LOOK_UP, "vec2(0.0)")
    declaration = f"uniform sampler2D {_TABLE};"
    return "".join(line for line in shader.splitlines(keepends=True) if declaration not in line)


def _kept(texts: dict[str, str]) -> Path:
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:20]
    folder = cache_folder("shaders") / digest
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
        for name, text in texts.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(text)
        try:
            draft.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return folder
