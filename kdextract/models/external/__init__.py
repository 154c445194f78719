"""Networks that are not of kdx: how they are named, whose code may run, how they are built, what they return.

Code runs after consent alone (`consent`), and weights are read as tensors alone (`weights`).
"""
