"""OpenVLA as a teacher: a batched model in a worker process of its own, and the client that drives it."""
