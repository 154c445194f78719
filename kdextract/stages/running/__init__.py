"""How a stage runs: lock, cache decision, checkpoints, signals, counters, and its result.

The code here is the same for every stage; what one stage alone needs belongs in its file.
"""
