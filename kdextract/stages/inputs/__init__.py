"""What stages read: real data, transfer sets, generators, classifiers, the inputs of a method, a user's own model.

Each file is found and hashed once, and recorded in the manifest of the artifact that is made from it. Stages read real
data through `real_data` alone.
"""
