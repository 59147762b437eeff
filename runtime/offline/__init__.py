"""Work done before or after tokens: profiles, training, evaluation, planted models, pictures.

A room for each; nothing here runs while an engine generates.

May import: nothing
"""
