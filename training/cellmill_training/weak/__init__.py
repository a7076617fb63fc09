"""The weak-label chain: a nucleus segmenter, a teacher of weak labels, its student, and what experts' labels add.

After Háberová and Vykopal 2023, "Weakly Supervised Semantic Cell Segmentation Using Knowledge Distillation". Read
`chain` first: it lists the stages.
"""
