"""Slides behind URLs, brought to a node's disk once: `cache` keeps them, `remote` describes, `download` fetches."""
