"""Plug-ins: found by name or file, their settings, run in a child process, blamed by name."""
