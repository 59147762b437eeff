"""C kernels, the exchange and the resident loop, bound with cffi; see abi/hotcold.h for the ABI.

The root holds the build and the errors of all packages. Rooms of C, with what each may include:

    abi: what Python, C and plug-ins agree on; structs and constants, no code
    layout: what lies where in GPU memory, counted and handed out by one function <- abi
    core: errors, the worker pool, which variant of a kernel this CPU runs <- abi
    cpu: the kernels' inner loops, one file an instruction set <- core
    ops: operators of a token on the CPU, one a file <- core
    exchange: flags and payloads between processes, and who watches them <- core
    loop: the resident loop that walks a program, and the CPU's steps <- abi, core
    cuda/kernels: operators on the GPU, one a file <- layout, loop
    cuda/memory: GPU memory of an executor, allocated and filled <- cuda/kernels, layout
    cuda/prompt: dense passes over a prompt <- cuda/kernels, cuda/memory
    cuda/executor: one token's pass as a CUDA graph <- cuda/kernels, cuda/memory, cuda/prompt
    cuda/operate: single operators, for tests and benches <- cuda/kernels, cuda/memory, cuda/prompt

May import: nothing
"""
