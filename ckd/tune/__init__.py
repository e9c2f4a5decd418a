"""Hyperparameter search on the validation part: what is searched, in which order, and what came of it."""
