"""Solvers that placement policies share."""
