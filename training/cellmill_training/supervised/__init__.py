"""Training a network on a labelled data set: crops, validation, one run, its history.

What `train-teacher` and `distill-student` have in common. Read `run` first.
"""
