"""Readers of the local training sets, each into `TissueSample`s with a stated scale and licence."""
