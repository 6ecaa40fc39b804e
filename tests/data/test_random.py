import numpy as np
import torch

from dgmbench.data.random import keyed_generator, keyed_seed


def test_equal_keys_give_equal_streams() -> None:
    first, second = (torch.rand(5, generator=keyed_generator("noise", 3, 17)) for _ in range(2))
    assert torch.equal(first, second)


def test_any_other_key_order_or_type_gives_another_stream() -> None:
    keys = [("a", 0, 1), ("a", 1, 0), ("a", 0), ("b", 0, 1), ("a", 0, "1"), ("a", 10), ("a1", 0), ("a", -1)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)


def test_numpy_integers_count_as_integers() -> None:
    assert keyed_seed("a", np.int64(7)) == keyed_seed("a", 7)


def test_the_seed_is_the_same_in_every_process() -> None:
    assert keyed_seed("permutation", 0, 5) == 2730932866999731236
