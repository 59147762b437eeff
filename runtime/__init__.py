"""The runtime without Ray: what a model is, where its neurons live, how a token is computed."""
