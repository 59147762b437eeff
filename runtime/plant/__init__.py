"""Models of planted sparsity at real shapes: no trained weights, the statistics of trained ones.

`shapes` says what can be planted, `statistics` how often each neuron is to fire, `signal` what
drives them, `planting` builds the weights a layer at a time (`forward` and `overfire` help),
`families` spells them for an architecture, `writers` puts them on disk, and `making.plant` does it
all; `hotcold plant` is its command. Nothing is imported here: the table of shapes costs no torch.
"""
