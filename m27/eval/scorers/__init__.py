"""Scores by the rules of each benchmark's own scorer, sample by sample.

One file a benchmark: how an answer is read out of free text, and when it counts as right. Every
file names in `SCORER` the official scorer and the commit whose rules it follows;
`benchmarks/conformance.py` runs both on the same answers. Plain Python: knows no model, no data on
disk and no file of results.
"""
