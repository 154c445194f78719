"""Networks that make images, those of a game and those that are kept as artifacts, and how they are trained.

Losses that one method alone has belong into its file.
"""
