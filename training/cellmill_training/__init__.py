"""Training of cellmill networks: sources, crops, losses, the loop and how a result is measured."""
