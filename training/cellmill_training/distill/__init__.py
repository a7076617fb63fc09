"""`distill-student`: a small network learns from a teacher's outputs beside the labels."""
