"""The `kdx` app: from what a user types to a command, and from a result to what a terminal shows.

Here belong reading arguments, printing, exit codes, and the commands that make no artifact (`show`, `runs`, `verify`,
`models`, `methods`, `check-teacher`, `demo`, `benchmark`). A command that writes an artifact is a file of `stages`.
"""
