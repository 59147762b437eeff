"""Pictures of a profile and of its predictors: PNG files and one page that holds them all.

`curves.py` computes what is drawn, `draw.py` draws it with matplotlib (an extra), `page.py` writes
the page. Called by `hotcold pictures`.

May import: native, runtime, runtime.predictors, runtime.profiles, runtime.tracing
"""
