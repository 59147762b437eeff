"""Evaluation: perplexity, recall and speed of predictors, sweeps, the harness."""
