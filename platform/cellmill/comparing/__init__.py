"""What changes when one model takes another's place: two cell sets of the same slides, cell by cell."""
