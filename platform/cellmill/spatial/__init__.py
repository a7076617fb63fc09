"""Where cells lie, in numbers: densities, tumour-infiltrating lymphocytes, distances, clustering; a slide at a time."""
