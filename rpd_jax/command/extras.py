"""Which extra of the project holds a package that is missing. Imports no JAX."""

# Top-level module -> the extra of pyproject.toml that installs it.
EXTRAS = {
    "array_record": "demos",
    "grain": "demos",
    "google_crc32c": "demos",
    "google": "demos",
    "h5py": "demos",
    "imageio_ffmpeg": "demos",
    "pyarrow": "demos",
    "jinja2": "report",
    "onnx": "export",
    "onnxruntime": "export",
    "safetensors": "openvla",
    "submitit": "sweep",
    "transformers": "openvla",
    "wandb": "wandb",
    "zmq": "groot",
}


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The sentence for a package that an extra installs; None for every other missing module."""
    name = (error.name or "").split(".")[0]
    extra = EXTRAS.get(name)
    return f"{name} is not installed, which this command needs: pip install 'rpd-jax[{extra}]'." if extra else None
