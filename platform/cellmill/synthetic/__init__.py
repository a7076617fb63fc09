"""Synthetic H&E slides with exact truth: for the demo, the tests, the benchmarks and a part of the training."""
