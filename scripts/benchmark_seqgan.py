"""SeqGAN's rollouts, all beginnings side by side, beside the loop over beginnings and rollouts that papers write down.

    python scripts/benchmark_seqgan.py [--batch 64] [--rollouts 16] [--length 20] [--tokens 100] [--hidden 32]

Both finish every beginning of the same sequences so many times; the loop reads a beginning and draws its rest, once for
each place and rollout. Prints the CPU time of both and their ratio, the least of some rounds in which they take turns.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dgmbench.nn.levels import draw_categories
from dgmbench.nn.token_policy import TokenPolicy


@torch.no_grad()
def looped(policy: TokenPolicy, x: Tensor, count: int) -> Tensor:
    """The ends of every beginning, one beginning and one rollout after the other."""
    start = torch.full((len(x), 1), policy.tokens)
    found = []
    for kept in range(1, x.shape[1]):
        for _ in range(count):
            row, state = x.clone(), None
            for place in range(x.shape[1]):
                word = start if place == 0 else row[:, place - 1 : place]
                output, state = policy.lstm(policy.embedding(word), state)
                if place >= kept:
                    row[:, place] = draw_categories(policy.top(output[:, 0]), torch.rand(len(x)))
            found.append(row)
    return torch.stack(found)


def seconds(call: Callable[[], Tensor]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("batch", 64), ("rollouts", 16), ("length", 20), ("tokens", 100), ("hidden", 32), ("rounds", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = TokenPolicy(args.tokens, args.length, None, width=args.hidden, hidden=args.hidden)
    x = policy.sample(args.batch)
    fast, slow = [], []
    for _ in range(args.rounds):
        fast.append(seconds(lambda: policy.finished(x, args.rollouts)))
        slow.append(seconds(lambda: looped(policy, x, args.rollouts)))
    print(f"side by side {1e3 * min(fast):.0f} ms, loop {1e3 * min(slow):.0f} ms, {min(slow) / min(fast):.1f}x")


if __name__ == "__main__":
    main()
