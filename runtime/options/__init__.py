"""What users can ask for: one table of options, and the data that it becomes.

May import: native, native.abi, native.options, runtime
"""
