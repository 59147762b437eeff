"""The command line: one file a command, `main.py` for what they share.

Reached by the console script `hotcold`. Commands turn options into calls of the same interfaces a
library user has; nothing is computed here.

May import: actors.cli.common, native
"""
