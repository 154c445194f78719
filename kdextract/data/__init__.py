"""The only place where real data is opened: data sets of libraries, files of a user, tables, points of the plane.

A data set is a module with its loader; `load` finds it by name. Nothing here knows classifiers or runs: images come as
they are stored.
"""
