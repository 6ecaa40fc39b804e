"""Walking figures in several styles, seen from the side: points of a body, with noise, at every frame.

Hips, knees, shoulders and elbows swing with a common phase, the two sides half a cycle apart; a style says how far,
about which angle and how fast, and whether the body leans and bounces. Each figure's phase, frequency and amplitude are
drawn.
"""

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import require

POINTS = (
    "head", "neck", "pelvis",
    "left knee", "left foot", "right knee", "right foot", "left elbow", "left hand", "right elbow", "right hand",
)  # fmt: skip
BONES = ((0, 1), (1, 2), (2, 3), (3, 4), (2, 5), (5, 6), (1, 7), (7, 8), (1, 9), (9, 10))
TORSO, HEAD, LEG, ARM = 0.55, 0.2, 0.45, 0.3  # metres: of legs and arms the upper and the lower half each
# cycles a frame; swings of hip, knee, shoulder in radians; bend of knee and elbow; lean, bounce
STYLES = {
    "stroll": (0.06, 0.35, 0.6, 0.25, 0.10, 0.2, 0.02, 0.01),
    "run": (0.10, 0.70, 1.5, 0.70, 0.35, 1.5, 0.25, 0.06),
    "march": (0.07, 0.60, 1.0, 0.90, 0.05, 0.1, -0.03, 0.02),
}


class Gait(Reader):
    """Real (length, 22): x and y of eleven points in metres, relative to the middle of the pelvis; y upwards.

    The class is the style. Independent draws for each split; ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(
        self,
        *,
        length: int = 40,
        noise: float = 0.01,
        train: int = 1000,
        valid: int = 100,
        test: int = 200,
        seed: int = 0,
    ) -> None:
        require("data", least=2, train=train, valid=valid, test=test, length=length)
        require("data", least=1e-4, noise=noise)  # without noise bones have one length, so there is no density
        self.length, self.noise, self.seed = length, noise, seed
        self.sizes = {"train": train, "valid": valid, "test": test}

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        parts = {}
        for split in SPLITS:
            n, rng = self.sizes[split], RandomState(keyed_seed("gait", split, self.seed) % 2**32)
            style = rng.randint(len(STYLES), size=n)
            phase, speed, reach = rng.rand(n), np.exp(0.1 * rng.randn(n)), np.exp(0.1 * rng.randn(n))
            points = walk(style, phase, speed, reach, self.length)
            x = points + self.noise * rng.randn(*points.shape)
            x = x.reshape(n, self.length, -1).astype(np.float32)
            parts[split] = Part(x, style.astype(np.int64), f"gait {split} seed {self.seed}", np.arange(n))
        spec = DataSpec(
            (self.length, 2 * len(POINTS)), "real", num_classes=len(STYLES), class_names=tuple(STYLES), bones=BONES
        )
        return Decoded(spec, parts, {"noise": self.noise})


def walk(style: np.ndarray, phase: np.ndarray, speed: np.ndarray, reach: np.ndarray, length: int) -> np.ndarray:
    """Points (n, length, 11, 2) without noise; ``phase`` is a share of a cycle, ``speed`` and ``reach`` are factors."""
    cycle, hip, knee, shoulder, bend, elbow, lean, bounce = (
        np.array(column)[style][:, None] for column in zip(*STYLES.values(), strict=True)
    )
    turn = 2 * np.pi * (phase[:, None] + cycle * speed[:, None] * np.arange(length))
    points = np.zeros((len(style), length, len(POINTS), 2))
    pelvis = np.stack([np.zeros_like(turn), bounce * np.cos(2 * turn)], -1)
    neck = pelvis + _limb(TORSO, np.pi - lean + 0 * turn)
    points[:, :, 2], points[:, :, 1], points[:, :, 0] = pelvis, neck, neck + _limb(HEAD, np.pi - lean + 0 * turn)
    for side, at in ((turn, 0), (turn + np.pi, 1)):
        thigh = reach[:, None] * hip * np.sin(side)
        shank = thigh - bend - knee * (0.5 + 0.5 * np.cos(side)) ** 2  # the leg that swings forward is bent
        upper = -reach[:, None] * shoulder * np.sin(side)
        points[:, :, 3 + 2 * at] = pelvis + _limb(LEG, thigh)
        points[:, :, 4 + 2 * at] = points[:, :, 3 + 2 * at] + _limb(LEG, shank)
        points[:, :, 7 + 2 * at] = neck + _limb(ARM, upper)
        points[:, :, 8 + 2 * at] = points[:, :, 7 + 2 * at] + _limb(ARM, upper + elbow)
    return points


def _limb(size: float, angle: np.ndarray) -> np.ndarray:
    """From joint to joint (..., 2): angle 0 points down, positive angles forward."""
    return size * np.stack([np.sin(angle), -np.cos(angle)], -1)
