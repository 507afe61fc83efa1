"""A student as files that run without this project: jax.export, ONNX, and weights for numpy."""
