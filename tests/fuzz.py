"""A seeded mutator: small and large damage to the bytes of a file, the same for the same seed."""

import random
from collections.abc import Iterator

# What files of numbers and texts get wrong in practice: signs of the formats, numbers at the ends of their types.
WORDS = (
    b"NaN", b"-1", b"1e999", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'"', b"\\", b"\n", b"\0",
    b"\xff\xfe", b"&a", b"*a", b"<<: ", b"_target_: ", b"!!python/object:os.system ", b"\x93NUMPY", b"PK\3\4",
    b"../", b"[[[[[[[[", b"0", b"9", b" ", b"-", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff",
)  # fmt: skip


def mutants(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged copies: one to three changes each, a flipped bit or a changed digit the smallest of them."""
    chance = random.Random(seed)
    for _ in range(count):
        found = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _damage(found, chance)
        yield bytes(found)


def _damage(found: bytearray, chance: random.Random) -> None:
    place, size = chance.randrange(len(found) + 1), chance.choice((1, 1, 2, 4, 16, 200))
    kind = chance.randrange(8)
    if kind == 0 and place < len(found):
        found[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        digits = [i for i in range(place, min(place + 400, len(found))) if 48 <= found[i] <= 57]
        if digits:
            found[chance.choice(digits)] = 48 + chance.randrange(10)
    elif kind == 2:
        del found[place : place + size]
    elif kind == 3:
        found[place:place] = chance.choice(WORDS)
    elif kind == 4:
        found[place : place + size] = chance.choice(WORDS)
    elif kind == 5:
        found[place:place] = found[place : place + size] * chance.choice((1, 2, 10))
    elif kind == 6:
        del found[place:]
    else:
        other = chance.randrange(len(found) + 1)
        found[place : place + size] = found[other : other + size]
