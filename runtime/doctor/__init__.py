"""Checks of this machine and of the installation, for `hotcold doctor`."""
