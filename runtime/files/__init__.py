"""Small files read and written with care: JSON, JSON lines, npz, recordings of activations."""
