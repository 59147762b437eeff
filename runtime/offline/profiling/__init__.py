"""The offline profiler: a model run over text in plain torch, every fired gate counted.

`counting.py` counts a unit of windows, `job.py` and `work.py` make a resumable job of many,
`sampling.py` lets the model write the text itself. What comes out is a
`hotcold.runtime.profiles.profile.ActivationProfile` and, if asked for, a recording
(`hotcold.runtime.files.recording`).

May import: native, runtime.engine, runtime.engine.executors, runtime.files, runtime.hardware,
    runtime.model.checkpoints, runtime.offline.training, runtime.options, runtime.profiles,
    runtime.text, runtime.weights
"""
