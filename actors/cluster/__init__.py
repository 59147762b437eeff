"""Ray itself: joining or starting a cluster, its processes, what they leave behind.

Knows nothing of models or engines.

May import: native, native.gpu, runtime.doctor
"""
