"""Text: the tokenizer, windows of a text, and the stream of a generation.

May import: native, native.options, runtime.files, runtime.model, runtime.model.checkpoints,
    runtime.options
"""
