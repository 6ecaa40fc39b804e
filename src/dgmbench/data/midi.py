"""Piano rolls as standard MIDI files (format 0), which any player of music opens."""

import struct
from itertools import pairwise

import numpy as np

from dgmbench.errors import UserError

TICKS = 480  # of a quarter note
TEMPO = 500_000  # microseconds of a quarter note
VELOCITY = 80


def midi_bytes(roll: np.ndarray, *, lowest_note: int, steps_a_quarter: int = 2) -> bytes:
    """A file of notes (t, d) that sound or not at each step; a note that goes on is held, not struck again."""
    if roll.ndim != 2 or not 0 <= lowest_note <= 128 - roll.shape[1]:
        raise UserError(
            f"A piano roll is (steps, notes), its notes from 0 to 127, not {roll.shape} from {lowest_note} on."
        )
    sounds = np.pad(roll.astype(bool), ((1, 1), (0, 0)))
    track, waited = bytearray(b"\x00\xff\x51\x03" + TEMPO.to_bytes(3, "big")), 0
    for before, now in pairwise(sounds):
        for note in np.flatnonzero(before != now):
            track += _number(waited) + bytes((0x90, lowest_note + int(note), VELOCITY if now[note] else 0))
            waited = 0
        waited += TICKS // steps_a_quarter
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _number(value: int) -> bytes:
    """A number in groups of seven bits, the last of which has no mark."""
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(value & 0x7F | 0x80)
    return bytes(reversed(found))
