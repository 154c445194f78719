"""The pages of a benchmark: tables, curves, Markdown and HTML, made from recorded results.

No figure is computed here that is not in the results already.
"""
