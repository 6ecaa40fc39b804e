"""Distances and scores of samples, all on feature vectors: pure functions, and torchmetrics classes that stream."""
