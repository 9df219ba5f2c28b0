"""How the pixels of a run are prepared, in sentences for people who use its model elsewhere."""

from __future__ import annotations

from ...clients.sam import SamNet
from ...datasets.windows import Windows
from ..trained import Trained


def preparation(trained: Trained) -> tuple[str, ...]:
    """What the pixels were that the model was trained with."""
    network = trained.replica.model
    if isinstance(network, SamNet):
        return (_read(trained.experiment.data), *_of_slices(trained.experiment.windows, network))
    return (
        f"Images are resized to {trained.experiment.model.image_size} x {trained.experiment.model.image_size} pixels,"
        " bilinearly with antialiasing and without keeping the aspect, and divided by 255. The image processor here"
        " does the same; single pixels may differ by the rounding of the library that resizes.",
    )


def _read(data: object) -> str:
    """How volumes come out of their files: what the data set says, or where it is to be seen."""
    said = getattr(data, "reading", None)
    return str(said) if said else f"How a volume is read and clipped first: {type(data).__qualname__}.open_image."


def _of_slices(windows: Windows, network: SamNet) -> tuple[str, ...]:
    whole = "the whole volume" if windows.normalise == "volume" else f"each window of {windows.depth} slices"
    grid = "" if windows.grid is None else f" Volumes were brought to {windows.grid} voxels first."
    side = network.image_size
    return (
        f"Slices go in one by one: min-max to [0, 1] over {whole}, resized to {side} x {side} pixels bilinearly with"
        f" antialiasing, without keeping the aspect and without padding, the same values in all three channels.{grid}",
        "Not SAM's own preparation: no mean is subtracted, nothing is divided by a deviation, and no image processor is"
        " in this folder, as none knows a volume.",
        "After the softmax, the probabilities are resized bilinearly to the slice, and the largest one is the label; 0"
        f" is background.{_averaged(windows)}",
    )


def _averaged(windows: Windows) -> str:
    """What becomes of a slice that is in several windows, where these differ."""
    if windows.normalise == "volume" or windows.depth == 1:
        return ""
    return " The probabilities of a slice are averaged over the windows that it is in."
