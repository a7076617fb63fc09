"""One vector a cell: a network's features pooled over the cell's own pixels, stored beside the cell tables."""
