"""Artifacts on disk: run directories, manifests, hashes, atomic files, `.safetensors` and `.npy`.

Nothing here knows what a stage means. Files are checked before they are believed.
"""
