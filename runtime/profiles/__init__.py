"""Activation profiles: how often each neuron fires, and the files that say so."""
