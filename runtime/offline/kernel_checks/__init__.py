"""Kernels of one's own compared with float64, in a process of their own."""
