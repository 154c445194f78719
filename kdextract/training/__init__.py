"""Training loops: steps, schedules, losses, augmentation, sources of images, evaluation.

This package depends neither on how images are made nor on how results are stored: a loop gets a `Source` and a
`CheckpointSaver`.
"""
