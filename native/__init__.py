"""C kernels, the exchange and the resident loop, bound with cffi; see hotcold.h for the ABI."""
