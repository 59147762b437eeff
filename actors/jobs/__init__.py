"""Ray jobs: submit a command, send the package along, fetch its output.

May import: actors.cluster, native, runtime
"""
