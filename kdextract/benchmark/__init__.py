"""Suites of teachers, students, methods, budgets and seeds, run through the ordinary commands.

Here belong reading a suite file, its cells, running them, and their results over seeds. Nothing here trains or makes
images: every figure comes from a stage that a user can run alone.
"""
