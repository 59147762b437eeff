"""Machines: rates that policies decide by, the files that hold them, this machine's cores."""
