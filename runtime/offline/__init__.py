"""Work done before or after tokens: profiles, training, evaluation, planted models, pictures."""
