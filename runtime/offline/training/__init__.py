"""Offline training of adaptive predictors: capture, sizes, fit, calibration, report."""
