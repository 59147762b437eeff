"""Model files: Hugging Face checkpoints in, bundles out; start from `resolve_model`."""

from hotcold.runtime.formats.bundle import Bundle, TensorEntry, open_bundle, resolve_model

__all__ = ["Bundle", "TensorEntry", "open_bundle", "resolve_model"]
