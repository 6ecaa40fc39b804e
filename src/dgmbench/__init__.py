"""dgmbench: train, sample, measure and compare the deep generative models of one survey under one evaluator."""

__version__ = "0.1.0"
