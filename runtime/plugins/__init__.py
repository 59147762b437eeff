"""Plug-ins: found by name or file, their settings, run in a child process, blamed by name.

The plug-ins that come with hotcold are in `hotcold.policies`, found like anybody's.

May import: native, runtime.files, runtime.hardware, runtime.plan
"""
