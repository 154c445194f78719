"""Pixels that are optimized against a frozen teacher, in batches and as a growing pool.

Every optimizer of pixels is `pixel_optimizer.PixelAdam`. Objectives belong into `methods`.
"""
