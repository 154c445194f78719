"""The report of a benchmark: tables, curves, Markdown and HTML, made from `results.json`.

It contains no figure that is not in the results.
"""
