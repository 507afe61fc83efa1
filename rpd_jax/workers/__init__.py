"""What a parent and its worker processes share: their ends, their memory, their cost. Imports no JAX.

May import the ground (errors) and nothing else of the project.
"""
