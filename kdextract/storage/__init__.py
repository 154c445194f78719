"""Artifacts on disk: run directories, manifests, hashes, atomic files, `.safetensors` and `.npy`.

This package does not depend on stages. Files are checked before their content is used.
"""
