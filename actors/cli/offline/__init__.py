"""Commands for work before or after tokens: profile, train, evaluate, plant, draw."""
