"""One file an architecture: its config.json as a ModelSpec, and the tensors behind a bundle's."""
