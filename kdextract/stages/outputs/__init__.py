"""What stages write beside weights: transfer sets, pictures, curves, the model card and the lineage.

Weights and arrays are written by `storage`; this package decides what goes into an artifact, not how files are written.
"""
