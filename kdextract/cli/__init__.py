"""The `kdx` app: reads arguments, runs commands, and prints results.

This package contains parsing, help, printing, exit codes, and the commands that are no stages (`show`, `runs`,
`verify`, `models`, `methods`, `check-teacher`, `demo`, `benchmark`). Each stage has a file in `stages`.
"""
