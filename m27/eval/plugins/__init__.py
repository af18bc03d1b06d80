"""Our checkpoints inside other people's evaluation programs: lm-evaluation-harness and lmms-eval.

Each program's model class stands in a file of its own, which imports that program and is imported by nobody here but
what it is for; `m27.eval.plugins.prompted` is what they share and needs neither.
"""
