"""``wardround export``: a run's model for other programs. One file per format, one table.

A new format is a function that suits :class:`~wardround.simulator.exports.contract.Format` and a row of ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ...datasets.writing import expect_new, whole_folder
from ..files import file_stem, write_json, write_text
from ..trained import Trained, load_trained
from .card import card
from .contract import Format, Recipe
from .licences import base_licence
from .origin import FILE as ORIGIN
from .origin import origin, read_origin

__all__ = ["FORMATS", "Format", "Recipe", "export", "origin", "read_origin"]


def _peft(trained: Trained, folder: Path, *, base: bool = True) -> Recipe:
    from .peft import write_peft

    return write_peft(trained, folder, base=base)


def _hf(trained: Trained, folder: Path) -> Recipe:
    from .hf import export_hf

    return export_hf(trained, folder)


def _sam_pth(trained: Trained, folder: Path) -> Recipe:
    from .sam_pth import export_sam_pth

    return export_sam_pth(trained, folder)


FORMATS: Mapping[str, Format] = {"peft": _peft, "hf": _hf, "sam-pth": _sam_pth}
"""What writes a format; its libraries are imported when it is asked for."""

WITHOUT_BASE: Mapping[str, Format] = {"peft": partial(_peft, base=False)}
"""The same for formats that can leave out the frozen base."""


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
        base: Write the frozen base beside the adapters; only ``peft`` can leave it out.

    Returns:
        The folder. It is there whole or not at all.

    Raises:
        ValueError: no such run, format, round or hospital; the model cannot be written in this format; the folder holds
            something; or ``licence`` contradicts what the base says.
    """
    write = _writer(form, base)
    folder = _default_folder(run, form, hospital) if out is None else out
    expect_new(folder)
    trained = load_trained(run, round_number=round_number, device="cpu")
    trained.load(hospital)
    stated = base_licence(trained.experiment.model, licence)
    with whole_folder(folder) as half:
        try:
            recipe = write(trained, half)
        except ValueError as error:
            raise ValueError(
                f"{run}: cannot be exported as {form}: {error}; `wardround predict` uses the model as it is"
            ) from error
        write_json(half / ORIGIN, origin(trained, hospital))
        write_text(half / "README.md", card(trained, recipe, stated, hospital))
    return folder


def _writer(form: str, base: bool) -> Format:
    """What writes a format."""
    if form not in FORMATS:
        raise ValueError(f"format: expected {', '.join(FORMATS)}, got {form!r}")
    if base:
        return FORMATS[form]
    if form not in WITHOUT_BASE:
        raise ValueError(
            f"base: expected the format {', '.join(WITHOUT_BASE)} where the base is to be left out, got {form!r}, "
            "whose files hold the whole model; leave out --no-base (base=False)"
        )
    return WITHOUT_BASE[form]


def _default_folder(run: Path, form: str, hospital: str | None) -> Path:
    return run / "export" / (form if hospital is None else f"{form}-{file_stem(hospital)}")
