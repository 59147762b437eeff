"""Model files: checkpoints and GGUF in, bundles out; start from `bundle.resolve_model`.

One file a format or a step of the conversion; what a tensor means is in `architectures`.

May import: native, native.abi, runtime.embedded, runtime.files, runtime.model,
runtime.model.architectures, runtime.model.gguf, runtime.profiles
"""
