"""Random streams that are functions of their keys: the noise of batch 17 needs no memory of batches 0 to 16."""

import hashlib

import torch


def keyed_seed(*keys: int | str) -> int:
    """A seed in [0, 2**63) that depends on ``keys`` and their order, the same on every machine and in every process.

    >>> keyed_seed("noise", 0, 17) == keyed_seed("noise", 0, 17) != keyed_seed("noise", 17, 0)
    True
    """
    text = repr([key if isinstance(key, str) else int(key) for key in keys])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` seeded by :func:`keyed_seed`; the first key should say what it is for."""
    return torch.Generator(device=device).manual_seed(keyed_seed(*keys))
