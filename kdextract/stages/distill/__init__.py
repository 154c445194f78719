"""`kdx distill`: its options, where its images come from, what its student starts with, and its budget.

Here belongs what this command alone decides. The loop is in `training`, the methods that make images in `methods`.
"""
