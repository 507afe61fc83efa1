"""Octo's network in its own parts: tokenizers, transformer, heads, language encoder, and configs that describe them.

May import rpd_jax's ground (errors) and nothing else outside of this folder.
"""
