"""A run on disk and on screen, whatever it trains: its directory, checkpoints, metrics, progress, stop and processes.

May import workers and the ground (errors); it knows neither students nor teachers.
"""
