"""Training loops and what they are fed with: steps, schedules, losses, augmentation, sources of images, evaluation.

Nothing here knows where images come from or where results are stored: a loop sees a `Source` and a `CheckpointSaver`.
"""
