"""What is train.py's own about a run on disk and on screen: its fields, its default directory, what it prints.

May import run and the ground.
"""
