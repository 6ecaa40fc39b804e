"""The content of named tensors, in whatever file they are."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
