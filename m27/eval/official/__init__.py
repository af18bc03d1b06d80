"""The official files of public benchmarks → samples, one file a benchmark.

Each has `samples(path)`, which reads what a user downloaded from the benchmark's own place and
yields `Sample`s in file order, with the official prompt where there is one. Media stay bytes or
paths. Knows no model and no scorer.
"""
