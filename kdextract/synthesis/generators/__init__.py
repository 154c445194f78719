"""Generators: networks of adversarial training, networks that are kept as artifacts, and their training.

A loss that only one method has is in the file of this method.
"""
