"""Optimization of pixels with a frozen teacher, in single batches and for a growing pool.

The only optimizer of pixels is `pixel_optimizer.PixelAdam`. Objectives are in `methods`.
"""
