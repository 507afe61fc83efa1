"""From demos on disk, in any format, to training batches.

`readers` finds the format (`demo_format` says what one is); `maniskill`, `rlds` and `lerobot` read one each into
`episodes.Demo`; `store` keeps what was read on disk for random access; `chunks` makes batches.
"""
