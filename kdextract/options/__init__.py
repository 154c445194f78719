"""How a command's options are declared once, and turned into arguments, Python parameters and recorded values.

Values and their checks belong to the dataclass that declares them, beside its stage or method.
"""
