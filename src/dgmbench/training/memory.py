"""Peak memory of one run, also where a process does several runs in turn."""

import torch

from dgmbench import system


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    system.reset_peak_memory()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that PyTorch held on the GPU, else the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return system.peak_memory()
