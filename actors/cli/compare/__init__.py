"""`hotcold compare`: cases, turns, table and page.

May import: actors, actors.cli.common, native, native.gpu, runtime.*
"""
