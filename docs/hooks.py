"""What the site's build adds: the front page from README.md, and the pages that are made from the code."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from flax.traverse_util import flatten_dict
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rpd_jax", "octo_teacher", "openvla_bridge")
ERRORS = ("UserError", "WorkerError", "CheckpointError", "BridgeError", "Diverged")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leaves pages out of the navigation that do not exist."""
    made = {name for name, _ in _generated()}
    config.nav = _existing(config.nav, made | {path.name for path in Path(config.docs_dir).glob("*.md")})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, text in _generated():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Names files of the project that are no pages, instead of linking to them."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)", lambda match: _named(match[1], match[2]), markdown)


def settings_page() -> str:
    """Every setting of configs/default.py with its meaning, its value, and the values of the profiles."""
    from configs import default
    from rpd_jax.settings.values import NAMES, SETTINGS

    config = default.get_config()
    names = ("paper", "cpu", "cpu_begun", "cpu_state", "refine")
    profiles = {name: flatten_dict(config.profiles[name].to_dict(), sep=".") for name in names}
    source = (ROOT / "configs" / "default.py").read_text()
    lines = [
        "# Settings",
        "",
        "Made from `configs/default.py`. `--config.FIELD=VALUE` changes a field; where a profile has a value, it",
        "fills the field unless you set it. `--config.profile=auto` is `paper` where there is a CUDA device, else",
        "`refine`; with `--config.refine=pixels` `cpu`, `cpu_begun` for a student that begins as another one, or",
        "`cpu_state` for one that sees the state. What is not allowed is refused at start.",
    ]
    allowed = {
        field: check.rule.removeprefix("must ").removeprefix("be ").rstrip(".") for field, check in SETTINGS.items()
    }
    allowed |= {field: f"one of {', '.join(names())}" for field, names in NAMES.items()}
    part = None
    for field, comment in _commented_fields(source):
        if field in ("stages", "profiles"):
            continue
        if part != (part := field.split(".")[0] if "." in field else "run"):
            lines += [
                "",
                f"## {part}",
                "",
                f"| field | meaning | value | {' | '.join(profiles)} | allowed |",
                "|---" * (4 + len(profiles)) + "|",
            ]
        value = config
        for key in field.split("."):
            value = value[key]
        shown = "" if value is None else _code(value)
        cells = [_code(profile[field]) if field in profile else "" for profile in profiles.values()]
        row = [f"`{field}`", comment.replace("|", "or"), shown, *cells, _escaped(allowed[field])]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## stages", "", "What the first two stages of `refine=state` have for themselves.", ""]
    lines += ["| field | value |", "|---|---|"]
    stages = flatten_dict(config.profiles.refine.stages.to_dict(), sep=".")
    lines += [f"| `stages.{field}` | {_code(value)} |" for field, value in stages.items()]
    lines += ["", "## Config files", "", "| file | what |", "|---|---|"]
    for path in [*sorted((ROOT / "configs").glob("[a-z]*.py")), *sorted((ROOT / "configs/paper").glob("[a-z]*.py"))]:
        sentence = " ".join(ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].split())
        lines.append(f"| `{path.relative_to(ROOT)}` | {sentence} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every message that ends a command with one sentence, by the part that says it."""
    from octo_teacher.finetuning import settings as finetuning
    from rpd_jax import settings

    tables = {
        ROOT / "rpd_jax" / "settings" / "relations.py": (*settings.RELATIONS, *settings.MACHINE),
        ROOT / "octo_teacher" / "finetuning" / "settings.py": finetuning.RELATIONS,
    }

    lines = [
        "# Error messages",
        "",
        "Made from the code: all sentences in which a command names a mistake and its mend. `…` stands for a name, a "
        "number or a list.",
    ]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            messages = list(dict.fromkeys(message for message in error_messages(path) if message))
            messages += [_escaped(re.sub(r"\{[^}]*\}", "…", sentence)) for _, sentence in tables.get(path, ())]
            if messages:
                lines += ["", f"## `{path.relative_to(ROOT)}`", "", *(f"- {message}" for message in messages)]
    return "\n".join(lines) + "\n"


def error_messages(path: Path) -> Iterator[str | None]:
    """The messages of the errors that a file raises for the user; None for one that is put together elsewhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS and node.args:
            yield _template(node.args[0])


def _template(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _escaped(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [_escaped(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left = _template(node.left)
        return None if left is None else left + (_template(node.right) or "…")
    return None


def _escaped(text: str) -> str:
    return re.sub(r"([*_`<>\[\]#|])", r"\\\1", " ".join(text.split("\n")))


def _generated() -> Iterator[tuple[str, str]]:
    readme = (ROOT / "README.md").read_text()
    readme = re.sub(r"\]\(docs/", "](", readme)
    readme = re.sub(
        r"(?<!!)\[([^\]]+)\]\((?!https?:|#)((?![\w.-]+\.md)[^)]+)\)", lambda match: _named(match[1], match[2]), readme
    )
    yield "index.md", readme
    yield "settings.md", settings_page()
    yield "errors.md", errors_page()


def _named(text: str, path: str) -> str:
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"


def _existing(nav: list, names: set[str]) -> list:
    kept = []
    for item in nav:
        ((title, target),) = item.items()
        if isinstance(target, list):
            target = _existing(target, names)
        if target and (isinstance(target, list) or target in names):
            kept.append({title: target})
    return kept


def _commented_fields(source: str) -> Iterator[tuple[str, str]]:
    """Settings that `get_config` assigns, with the comment at the end of the assignment."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "get_config")
    for node in function.body:
        if isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("ConfigDict("):
            yield ast.unparse(node.targets[0]).removeprefix("c."), comments.get(node.end_lineno, "")


def _code(value: object) -> str:
    return f"`{value}`" if value != "" else "`''`"
