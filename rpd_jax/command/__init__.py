"""How a command starts, and how it is told that it is wrong. Imports no JAX.

Of the project it may import `errors` and `run`.
"""
