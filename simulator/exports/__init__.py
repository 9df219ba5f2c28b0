"""``wardround export``: a run's model for other programs. One file per format, one table.

A new format is a function that suits :class:`~wardround.simulator.exports.contract.Format` and a row of ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...aggregators.local import Local
from ...datasets.writing import expect_new, whole_folder
from ..files import file_stem, write_json, write_text
from ..trained import Trained, load_trained
from .card import card
from .contract import Format, Recipe
from .licences import base_licence
from .origin import FILE as ORIGIN
from .origin import origin, read_origin

__all__ = ["FORMATS", "Format", "Recipe", "export", "origin", "read_origin"]


def _peft(trained: Trained, folder: Path, *, base: bool) -> Recipe:
    from .peft import write_peft

    return write_peft(trained, folder, base=base)


def _hf(trained: Trained, folder: Path, *, base: bool) -> Recipe:
    from .hf import export_hf

    return export_hf(trained, folder, base=base)


def _sam_pth(trained: Trained, folder: Path, *, base: bool) -> Recipe:
    from .sam_pth import export_sam_pth

    return export_sam_pth(trained, folder, base=base)


FORMATS: Mapping[str, Format] = {"peft": _peft, "hf": _hf, "sam-pth": _sam_pth}
"""What writes a format; its libraries are imported when it is asked for."""


def export(
    run: Path,
    form: str,
    out: Path | None = None,
    *,
    hospital: str | None = None,
    round_number: int | None = None,
    licence: str | None = None,
    base: bool = True,
) -> Path:
    """Writes the model of a run for other programs, with a model card and ``wardround.json``.

    Args:
        run: The run directory; the run need not be finished.
        form: A format: ``peft``, ``hf`` or ``sam-pth``.
        out: A folder that is new or empty; None: ``export/FORMAT`` in the run, with ``-HOSPITAL`` where one is given.
        hospital: Whose model; None: that of a site never seen.
        round_number: After which round; None: the last that was saved.
        licence: Of the base, where its weights do not say it.
        base: Of ``peft``: write the frozen base beside the adapters.

    Returns:
        The folder. It is there whole or not at all.

    Raises:
        ValueError: no such run, format, round or hospital; the model cannot be written in this format; the folder holds
            something; or ``licence`` contradicts what the base says.
    """
    if form not in FORMATS:
        raise ValueError(f"format: expected {', '.join(FORMATS)}, got {form!r}")
    folder = _default_folder(run, form, hospital) if out is None else out
    expect_new(folder)
    trained = load_trained(run, round_number=round_number, device="cpu")
    _check_trained(trained, hospital)
    stated = base_licence(trained.experiment.model, licence)
    trained.load(hospital)
    with whole_folder(folder) as half:
        try:
            recipe = FORMATS[form](trained, half, base=base)
        except ValueError as error:
            raise ValueError(
                f"{run}: cannot be exported as {form}: {error}; `wardround predict` uses the model as it is"
            ) from error
        write_json(half / ORIGIN, origin(trained, hospital))
        write_text(half / "README.md", card(trained, recipe, stated, hospital))
    return folder


def _check_trained(trained: Trained, hospital: str | None) -> None:
    """Raises ValueError where the model asked for is the one that the run began with."""
    if hospital is None and isinstance(trained.experiment.aggregator, Local):
        raise ValueError(
            f"{trained.path}: expected a hospital, as each of them trained for itself and there is no model of all; got"
            f" none: choose one of {', '.join(trained.hospitals)}"
        )


def _default_folder(run: Path, form: str, hospital: str | None) -> Path:
    return run / "export" / (form if hospital is None else f"{form}-{file_stem(hospital)}")
