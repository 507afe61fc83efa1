"""Refined Policy Distillation: PPO with a pull towards a vision-language-action teacher, in JAX."""
