"""Decoding steps on a GPU as a few fused kernels a layer, replayed as CUDA graphs.

`step` is the step over static arrays, `ops` its parts in plain torch, `kernels` the same parts in
Triton, `graphs` the graphs. `m27.infer.torch_runner` is what everything here has to equal.
"""
