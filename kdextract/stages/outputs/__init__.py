"""What stages write beside weights: transfer sets, pictures, curves, and the model card with its lineage.

This package decides what an artifact contains; `storage` writes the files.
"""
