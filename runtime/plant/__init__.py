"""Models of planted sparsity at real shapes: no trained weights, the statistics of trained ones.

`shapes` says what can be planted, `statistics` how often each neuron is to fire, `signal` what
drives them, `planting` builds the weights a layer at a time, `writers` puts them on disk, `making`
does it all; `hotcold plant` is its command.
"""

from hotcold.runtime.plant.making import PlantOptions, PlantReport, plant
from hotcold.runtime.plant.shapes import SHAPES, Shape

__all__ = ["SHAPES", "PlantOptions", "PlantReport", "Shape", "plant"]
