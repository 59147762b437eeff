"""Text: the tokenizer, windows of a text, and the stream of a generation."""
