"""The shaders that frames are drawn with: SAPIEN's "minimal" pack without what no frame shows.

Everywhere without its table of reflections (the BRDF of image-based lighting), which is computed anew in each process,
for some seven seconds of a core in software Vulkan, and weights what an environment map adds to a picture. ManiSkill's
tasks have no such map, so that the weights are multiplied by black.

On a CPU, where each instruction of a shader counts, also without the look-ups in that map, without positions and
segmentation, which nobody reads, and without the second pass, which puts the map behind the picture. The frames are the
same, bit for bit. And materials may be marked there, by an index of refraction that nothing else reads: as FLAT, each
triangle is shaded by its own plane and needs no normals, and as STILL, nothing is drawn but the depth, see
`rpd_jax.envs.backdrop`.
"""

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import sapien
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.render.shaders import ShaderConfig, set_shader_pack

from rpd_jax.run.cache import cache_folder

# Indices of refraction; what a material has that is not marked lies below both.
FLAT, STILL = 3.0, 4.0


class Edit(NamedTuple):
    """A text of one of the pack's files, and what takes its place."""

    file: str
    before: str
    after: str


_NO_TABLE = (
    Edit("minimal/gbuffer.frag", "texture(samplerBRDFLUT, vec2(roughness, dotNV)).xy", "vec2(0.0)"),
    Edit("minimal/gbuffer.frag", "layout(set = 3, binding = 8) uniform sampler2D samplerBRDFLUT;\n", ""),
    Edit("minimal/composite0.frag", "layout(set = 2, binding = 8) uniform sampler2D samplerBRDFLUT;\n", ""),
)
_NO_MAP = (
    Edit(
        "minimal/gbuffer.frag",
        """  color += diffuseIBL(diffuseAlbedo, wnormal);
  color += specularIBL(fresnel, roughness,
                       wnormal,
                       mat3(cameraBuffer.viewMatrixInverse) * camDir);
""",
        "",
    ),
    # The composition of one layer with black.
    Edit("minimal/gbuffer.frag", "out vec4 outColorRaw;", "out vec4 outColor;"),
    Edit(
        "minimal/gbuffer.frag",
        "outColorRaw = vec4(clamp(pow(color, vec3(1/2.2)), vec3(0), vec3(1)), albedo.a);",
        "outColor = vec4(clamp(pow(color, vec3(1/2.2)), vec3(0), vec3(1)) * albedo.a, albedo.a);",
    ),
)
_NO_SEGMENTATION = (
    Edit("minimal/gbuffer.vert", "layout(location = 2) out flat uvec4 outSegmentation;\n", ""),
    Edit("minimal/gbuffer.vert", "layout(location = 3) out vec3 objectCoord;\n", ""),
    Edit("minimal/gbuffer.vert", "  outSegmentation = objectDataBuffer.segmentation;\n", ""),
    Edit("minimal/gbuffer.vert", "  objectCoord = position;\n", ""),
    Edit("minimal/gbuffer.frag", "layout(location = 2) in flat uvec4 inSegmentation;\n", ""),
    Edit("minimal/gbuffer.frag", "layout(location = 3) in vec3 objectCoord;\n", ""),
    Edit("minimal/gbuffer.frag", "layout(location = 1) out ivec4 outPositionSegmentation;\n", ""),
    Edit(
        "minimal/gbuffer.frag", "  outPositionSegmentation = ivec4(ivec3(inPosition * 1000), inSegmentation[1]);\n", ""
    ),
)
_FLAT_MARK = (
    Edit(
        "minimal/gbuffer.frag",
        "if (objectDataBuffer.shadeFlat == 0) {",
        f"if (objectDataBuffer.shadeFlat == 0 && materialBuffer.ior != {FLAT}) {{",
    ),
)
_STILL_MARK = (
    Edit(
        "minimal/gbuffer.frag",
        "void main() {\n",
        f"void main() {{\n  if (materialBuffer.ior == {STILL}) {{\n    outColor = vec4(0);\n    return;\n  }}\n",
    ),
)
_PASS_OF_MAP = ("minimal/composite.vert", "minimal/composite0.frag")


def rgba_shader(scene: ManiSkillScene, marks: bool = False, still: bool = False) -> ShaderConfig:
    """The shaders of a camera in `scene` that gives RGBA alone; its texture is "rgba" uint8 [N, H, W, 4].

    To be called before each camera is made, since SAPIEN keeps the formats of pictures globally.

    Args:
        scene: where the camera will be.
        marks: draw materials marked FLAT as this module says; needs `knows_marks`.
        still: those marked STILL too. (A process's scenes share the materials of files.)
    """
    minimal = _config("minimal")
    set_shader_pack(minimal)
    if any(each.render_system.cubemap is not None for each in scene.sub_scenes):
        return _config(_pack(_FLAT_MARK)) if marks else minimal
    return _config(_lean_pack(still) if marks else _pack(_NO_TABLE))


def knows_marks() -> bool:
    """True if materials can be marked: SAPIEN's shaders are those that we know, and edited ones can be kept."""
    return "minimal" not in (_pack(_FLAT_MARK), _lean_pack(False), _lean_pack(True))


def _lean_pack(still: bool) -> str:
    edits = (*_NO_TABLE[:2], *_NO_MAP, *_NO_SEGMENTATION, *_FLAT_MARK, *(_STILL_MARK if still else ()))
    return _pack(edits, without=_PASS_OF_MAP)


def _config(pack: str) -> ShaderConfig:
    # ManiSkill's own transform drops alpha and so gives a strided view, which JAX refuses over DLPack.
    return ShaderConfig(
        shader_pack=pack,
        texture_names={"Color": ["rgb"]},
        texture_transforms={"Color": lambda rgba: {"rgba": rgba}},
    )


@functools.cache
def _pack(edits: tuple[Edit, ...], without: tuple[str, ...] = ()) -> str:
    """Folder of the shaders, kept for the next process; "minimal" where they are not what we know or cannot be kept."""
    packs = Path(sapien.__file__).parent / "vulkan_shader"
    try:
        texts = {
            str(file.relative_to(packs)): file.read_text()
            for folder in ("common", "minimal")
            for file in sorted((packs / folder).iterdir())
        }
        for name in without:
            del texts[name]
        for edit in edits:
            if edit.before not in texts[edit.file]:
                return "minimal"
            texts[edit.file] = texts[edit.file].replace(edit.before, edit.after)
        return str(_kept(texts) / "minimal")
    except (OSError, UnicodeDecodeError, KeyError):
        return "minimal"


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
