"""Declaration of options, and their conversion to command-line arguments, Python parameters and recorded values.

Each option is declared once, in the dataclass of its stage or method, with its default and its checks.
"""
