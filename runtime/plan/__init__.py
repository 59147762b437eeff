"""Planning: the problem, the placement, the plan, the schedule, the programs, what they cost.

Numbers in, numbers out: no weights, no GPU, no compiled kernels. Where a neuron's owner is decided.

May import: native, native.abi, runtime, runtime.exchange, runtime.files, runtime.hardware,
    runtime.model
"""
