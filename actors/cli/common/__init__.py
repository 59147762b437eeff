"""What commands share: options, output, a running engine.

What only one command needs stays in its own file.

May import: actors, native, native.options, runtime.files, runtime.options
"""
