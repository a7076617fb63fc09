"""A model against labelled images that it has never seen: references, predictions, figures, a page."""
