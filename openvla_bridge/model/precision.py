"""The number types that a policy may compute in, as torch names them; imports no torch."""

PRECISIONS = ("float32", "bfloat16")
