"""The only package that opens real data: data sets of libraries, files of a user, tables, points of the plane.

There is one module for each kind of data set; `load` finds it by name. No module here depends on classifiers or runs:
images are returned as they are stored.
"""
