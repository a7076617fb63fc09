"""`train-teacher`: a network over a foundation model, its rival CellViT and the ResNet50 baseline, by one job."""
