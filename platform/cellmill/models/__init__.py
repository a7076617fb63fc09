"""Networks by name, their weights, and inference.

`config` says what a model is, `networks` builds it, `loading` reads one from a folder, the package or a registry, and
`inference` runs it on tiles.
"""
