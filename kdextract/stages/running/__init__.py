"""How a stage runs: lock, cached or not, checkpoints, signals, counts, and its result.

It knows no stage: what one stage alone needs belongs into its file.
"""
