"""One run from start to end: train, evaluate and sample a folder."""
