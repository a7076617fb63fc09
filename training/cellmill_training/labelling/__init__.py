"""From experts' points to labels: points to outlines, several annotators to one consensus, and how far they agree."""
