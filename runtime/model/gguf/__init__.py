"""GGUF files in: llama.cpp's and PowerInfer's, as a checkpoint with a config, tensors, a tokenizer.

One file a step: header, keys, tensors, vocabulary. Nothing of a file is believed before it is
compared with the size of the file. The gguf package dequantises; it parses nothing.

May import: native, runtime.files
"""
