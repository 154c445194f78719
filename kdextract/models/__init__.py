"""Networks: the `Classifier` around them, hooks, pixels, import and export, and smaller networks from larger ones.

`architectures` has the networks of kdx, `external` those of others. Nothing here trains or makes images.
"""
