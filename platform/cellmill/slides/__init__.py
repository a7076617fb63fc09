"""Slides: open them, read model-grid pixels, find tissue, judge quality, all apart from the caller's process."""
