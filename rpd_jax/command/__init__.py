"""How a command starts, and how it is told that it is wrong. Imports no JAX.

May import the ground (errors) and nothing else of the project.
"""
