"""Runs in MLflow: what was run on what, how it went, and the model that came out."""
