"""The `lite` network compiled for CPUs: tiles in, quantised maps of their cores out.

`network` lays the layers out, `weights` folds and packs, the `*_kernels` compute, and
`vectors` is what they are written in.
"""
