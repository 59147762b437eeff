"""Reference machines: hardware files that are read by name, `--hardware pc-low`.

    pc-high      the paper's: i9-13900K, RTX 4090, PCIe 4.0 x16
    pc-low       the paper's: i7-12700K, RTX 2080 Ti, PCIe 3.0 x16
    laptop-8gb   a laptop with 8 GB of GPU memory: DDR5-5600, RTX 4060, PCIe 4.0 x8
    h100-box     16 cores of a server with one H100, a share of its memory: 92 GB/s
    h100-16core  as many cores and GPUs, another host: 127 GB/s, as `hotcold hardware --quick`
                 wrote it
    xeon-2core   two cores of a virtual machine without a GPU, as `hotcold hardware` wrote it

Each figure in a file says whether it was measured, printed by the paper (and where), or estimated
(and how); machine_file.py reads and checks them. The paper prints PCIe in both directions and no
T_sync. FLOP/s matter at large batches only.

May import: nothing
"""
