"""Suites of teachers, students, methods, budgets and seeds, run by the commands of kdx.

This package reads suite files, plans and runs their cells, and collects the results over seeds. It does not train
networks or make images itself: every figure comes from a stage that can also be run alone.
"""
