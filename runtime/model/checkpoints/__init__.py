"""Model files: Hugging Face checkpoints in, bundles out; start from `bundle.resolve_model`."""
