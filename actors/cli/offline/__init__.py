"""Commands for work before or after tokens: profile, train, evaluate, plant, draw.

May import: actors.cli.commands, actors.cli.common, native, runtime.*
"""
