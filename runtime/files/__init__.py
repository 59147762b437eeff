"""Small files read and written with care: JSON, JSON lines, npz, recordings of activations.

Formats of models are in `model.checkpoints`, of weights in `weights`.

May import: native
"""
