"""Strips of frames, piano rolls and stick figures, and the music beside a roll."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from dgmbench.data.midi import TICKS, midi_bytes
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.rtrbm import Rtrbm
from dgmbench.runs.pictures import write_samples
from dgmbench.runs.shows import DRAWS, completions
from dgmbench.runs.strips import _frames, animation, draw_strips


def test_a_strip_has_a_row_a_sequence_and_a_place_a_frame() -> None:
    values = np.zeros((2, 3, 6), np.float32)
    values[1, 2, 5] = 1.0  # the last pixel of the last frame
    strip = _frames(values, (2, 3))
    assert strip.shape == (2 * 3, 3 * 4)
    assert strip[-1, -1] == 1.0
    assert (strip == 1.0).sum() == 1


@pytest.mark.parametrize(
    "spec",
    [
        DataSpec((4, 6), "binary", frame=(2, 3)),
        DataSpec((4, 6), "binary", lowest_note=60),
        DataSpec((4, 6), "real", bones=((0, 1), (1, 2))),
    ],
)
def test_pictures_of_every_kind_of_step(spec: DataSpec, tmp_path: Path) -> None:
    written = write_samples(tmp_path / "x.png", torch.ones(9, 4, 6).to(spec.dtype), spec)
    beside = {".gif": spec.frame, ".mid": spec.lowest_note}
    assert [path.suffix for path in written] == [".png"] + [ending for ending, there in beside.items() if there]
    assert DataSpec(**spec.as_dict()).as_dict() == spec.as_dict()
    assert draw_strips(torch.ones(1, 4, 6).to(spec.dtype), spec) is not None


def test_a_film_shows_every_frame_of_every_video_at_its_place() -> None:
    spec, videos = DataSpec((3, 6), "binary", frame=(2, 3)), torch.zeros(5, 3, 6, dtype=torch.uint8)
    videos[4, 1, 0] = 1  # the fifth of five, four in a row: the first of the second row
    with Image.open(io.BytesIO(animation(videos, spec))) as film:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(film)]
    assert len(frames) == 3
    factor = frames[0].shape[1] // (4 * 4)
    row, column = 1 * 3 + 1, 1  # a line of grey before each video
    for time, frame in enumerate(frames):
        pixels = frame[factor // 2 :: factor, factor // 2 :: factor]
        bright = np.argwhere(pixels > 200).tolist()
        assert bright == ([[row, column]] if time == 1 else [])


def test_completions_of_sequences_keep_the_first_steps() -> None:
    spec = DataSpec((4, 6), "binary", frame=(2, 3))
    model, g = Rtrbm(spec, hidden=2, sample_steps=1), torch.Generator().manual_seed(0)
    x = (torch.rand(3, 4, 6, generator=g) < 0.5).to(torch.uint8)
    shown = completions(model, Batch(x), spec, g)
    assert shown.shape == (3, 2 + DRAWS, 4, 6)
    assert torch.equal(shown[:, :, :2], x[:, None, :2].expand(3, 2 + DRAWS, 2, 6))
    assert not shown[:, 1, 2:].any()


def test_midi_holds_notes_and_lets_time_pass() -> None:
    roll = np.zeros((3, 2), np.uint8)
    roll[0:2, 0], roll[2, 1] = 1, 1
    found = midi_bytes(roll, lowest_note=60)
    assert found[:4] == b"MThd"
    events = found[found.index(b"MTrk") + 8 + 7 : -4]
    wait = (2 * TICKS // 2).to_bytes(2, "big")
    assert wait == b"\x01\xe0"
    assert events == bytes.fromhex("00903c508360903c0000903d508170903d00")
    assert int.from_bytes(found[18:22], "big") == len(found) - 22
    with pytest.raises(UserError, match="piano roll"):
        midi_bytes(roll, lowest_note=127)
