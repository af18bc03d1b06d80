"""Answers of words, pictures and sounds in turn: made by any model, kept with their media, measured by rules and, apart
from those, by a judge model.

`makers` make them, `content` keeps them, `tier` measures without a judge, `pairwise` (OpenING) and `levels` (ISG-Bench)
ask one through `verdicts`, and `run` puts these in turn.
"""
