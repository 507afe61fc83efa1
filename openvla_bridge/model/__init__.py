"""OpenVLA in PyTorch: preprocessing, network, tokens to actions, checkpoints. Never imports JAX or rpd_jax."""
