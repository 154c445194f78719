"""Cutting channels out of a network: which depend on each other, which stay, and the smaller network.

`groups` finds the channels with torch-pruning's dependency graph, `checks` tries every cut, `cut` makes the smaller
classifier, and `sizes` builds it again from its file, without torch-pruning.
"""
