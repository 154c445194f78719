"""`kdx distill`: its options, its source of images, its initial student, and its budget.

This package contains what this command alone needs. The loop is in `training`, the methods that make images in
`methods`.
"""
