"""What stages read: real data, transfer sets, classifiers, what a method needs, a user's own model.

Everything that is opened here is found and hashed once, and named in the manifest of what is made from it. Stages open
real data through `real_data` alone.
"""
