"""Writes the picture of the README from a finished run: the median test volume of each hospital.

python -I docs/make_picture.py runs/quickstart/ID docs/quickstart.png
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

from wardround.simulator.reports.figures import overlay_png

mpl.use("Agg")
import matplotlib.pyplot as plt


def main(run: Path, out: Path) -> None:
    """Draws one panel per hospital: truth as an outline, prediction as a translucent colour."""
    files = sorted((run / "overlays").glob("*.npz"))
    figure, axes = plt.subplots(1, len(files), figsize=(2.6 * len(files), 3.0), dpi=110)
    for axis, file in zip(np.atleast_1d(axes), files, strict=True):
        with np.load(file, allow_pickle=False) as kept:
            median = len(kept["dice"]) // 2
            spacing = tuple(kept["spacing_mm"][median])
            picture = overlay_png(
                kept["image"][median], kept["truth"][median], kept["prediction"][median], spacing_mm=spacing, side=260
            )
            axis.set_title(f"{file.stem}: Dice {kept['dice'][median]:.2f}", fontsize=9)
        axis.imshow(plt.imread(io.BytesIO(picture), format="png"))
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(out, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
