"""The README of a policy folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from rpd_jax.export import latency
from rpd_jax.markdown import markdown_table
from rpd_jax.run.records import read_results
from rpd_jax.run.whole_file import write_whole

_TEXT = """# {task}: student of {run}

`{algorithm}`, seed {seed}, {steps:,} environment steps. Instruction of its teacher: "{instruction}".{success}

| file | what |
|---|---|
| `policy.jax` | `jax.export` program, any batch size, CPU and CUDA |
| `policy.onnx` | the same as an ONNX graph |
| `weights.npz`, `run_numpy.py` | the same for numpy alone: `python run_numpy.py` |
| `example.npz` | inputs and the actions that belong to them |
| `policy.json` | inputs, meaning of the actions, camera, origin |

```python
import jax, numpy as np, onnxruntime

inputs = {{name: array for name, array in np.load("example.npz").items() if name != "actions"}}
actions = jax.export.deserialize(bytearray(open("policy.jax", "rb").read())).call(*inputs.values())
actions = onnxruntime.InferenceSession("policy.onnx").run(None, inputs)[0]
```

Inputs: {inputs}. Actions: {meaning}.
"""


def write_readme(folder: Path, run: str | Path, rows: Sequence[tuple[str, ...]]) -> None:
    """Writes README.md: origin, files, how to run them, and the table of `latency.measure` if there are rows."""
    description = json.loads((folder / "policy.json").read_bytes())
    inputs = description.pop("inputs")
    text = _TEXT.format(
        **description,
        run=Path(run).name,
        success=_success(Path(run)),
        inputs=", ".join(f"`{name}` {spec['dtype']} {spec['shape']}" for name, spec in inputs.items()),
        meaning=description["actions"]["meaning"],
    )
    if rows:
        text += f"\nOne frame at a time, on {latency.machine()}:\n\n{markdown_table(latency.COLUMNS, rows)}\n"
    write_whole(folder / "README.md", text)


def _success(run: Path) -> str:
    results = run / "results.json"
    if not results.exists():
        return ""
    student = read_results(results)["student"]
    bounds = f"{student['success_low']:.0%} to {student['success_high']:.0%}"
    return f" Success at the end of the run: {student['success']:.0%} ({bounds}, {student['episodes']:.0f} episodes)."
