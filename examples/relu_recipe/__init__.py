"""The recipe of a ReLU model whose neurons are mostly silent; ../RECIPE.md says how to use it.

recipe.py what is asked for, text.py token windows, model.py the network, sparsity.py the charge on
what fires, state.py the checkpoint, training.py the loop, result.py folder and report. Plain torch
and transformers: copy the folder and change it.
"""
