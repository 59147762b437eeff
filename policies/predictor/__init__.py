"""Predictor kinds, one a file: exact, learned, and four that need no training.

What a predictor is and how its native form looks is in `hotcold.runtime.predictors`.

May import: native, runtime.hardware, runtime.predictors, runtime.profiles
"""
