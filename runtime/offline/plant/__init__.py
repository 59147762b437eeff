"""Models of planted sparsity at real shapes: no trained weights, the statistics of trained ones.

`shapes` says what can be planted, `options` what is asked of it, `statistics` how often each neuron
is to fire, `signal` what drives them, `firing` (with `overfire`) when they do and the predictor
that knows, `planting` (with `forward`) the weights, a layer at a time as `drawing` describes it;
`families` spells an architecture's config, `writers` (with `streams` and `tokens`) puts it all on
disk, `room` asks first whether there is any, and `making.plant` does it all; `hotcold plant` is its
command. Nothing is imported here: the table of shapes costs no torch.

May import: native, native.abi, native.options, runtime, runtime.hardware, runtime.model,
    runtime.model.architectures, runtime.model.checkpoints, runtime.model.gguf, runtime.plan,
    runtime.profiles,
    runtime.weights
"""
