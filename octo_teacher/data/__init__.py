"""From demos on disk, in any of three formats, to training batches.

`readers` finds the format; `maniskill`, `rlds` and `lerobot` read one each into `episodes.Demo`; `store` keeps what was
read on disk for random access; `chunks` makes batches.
"""
