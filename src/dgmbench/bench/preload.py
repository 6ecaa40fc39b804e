"""Everything that a cell imports, imported once: a process that is forked from here starts at once.

No tensor operation runs here and CUDA is never touched, because neither survives a fork.
"""

import contextlib
import gc

import hydra
import jaxtyping
import matplotlib
import PIL.Image
import pytorch_lightning
import sklearn.datasets
import sklearn.linear_model
import torch

import dgmbench.data
import dgmbench.runs.evaluate
import dgmbench.runs.run
from dgmbench.config import compose
from dgmbench.source import evaluation_hash

__all__ = ["PIL", "dgmbench", "hydra", "jaxtyping", "matplotlib", "pytorch_lightning", "sklearn", "torch"]

with contextlib.suppress(Exception):  # Hydra finds its plugins and learns its grammar at the first use
    compose("train", ["model=vae", "seed=0"])

evaluation_hash()  # every result carries it

gc.freeze()  # the pages of what is loaded stay shared with every process that is forked
