"""New type heads on stored embeddings: from corrections, or for a new ontology, in seconds and without the network."""
