"""``python -m mywards.example DIR`` writes a small data set to try ``mywards.npz_volumes`` on: balls in noise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HOSPITALS = {"north": 1.0, "south": 2.0, "west": 0.5}
"""How bright a ball is at every hospital; the noise has a standard deviation of 0.2."""


def write(folder: Path, cases: int = 5) -> None:
    """Writes ``cases`` volumes of 6 slices of 32 x 32 voxels for every hospital."""
    for place, (hospital, brightness) in enumerate(HOSPITALS.items()):
        (folder / hospital).mkdir(parents=True)
        for number in range(cases):
            rng = np.random.default_rng([place, number])
            slices, rows, columns = np.ogrid[:6, :32, :32]
            z, y, x = rng.uniform((2, 10, 10), (4, 22, 22))
            label = (2 * (slices - z)) ** 2 + (rows - y) ** 2 + (columns - x) ** 2 < 7**2
            image = brightness * label + rng.normal(0, 0.2, label.shape)
            file = folder / hospital / f"p{number}.npz"
            np.savez(file, image=image, label=label.astype(np.uint8), spacing_mm=np.array([3.0, 1.0, 1.0]))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
