"""Reference machines: hardware profiles that are read by name, `--hardware pc-low`.

None was measured by us; each rate is what a kernel may be expected to reach:

    pc-high      the paper's: i9-13900K, 67.2 GB/s; RTX 4090, 85 % of 1008 GB/s; PCIe 4.0 x16
    pc-low       the paper's: i7-12700K, 38.4 GB/s; RTX 2080 Ti, 85 % of 616 GB/s; PCIe 3.0 x16
    laptop-8gb   8 GB laptop: DDR5-5600, two channels; RTX 4060, 85 % of 256 GB/s; PCIe 4.0 x8
    h100-box     one H100 of a server: 16 cores' share of its memory, 92 GB/s; 3 TB/s; PCIe 5.0

Host rates and the GPU's label rates of the two PCs are section 8.1 of the paper and the cards'
sheets. The paper prints PCIe in both directions (64 and 32 GB/s); one direction reaches 25 and 12.
It does not print T_sync: 50 us, two host callbacks of a CUDA stream, is assumed for the PCs and
20 us, flags in pinned memory, for the server. FLOP/s matter at large batches only.
"""
