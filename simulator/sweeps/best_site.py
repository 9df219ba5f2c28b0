"""The best single site: the one hospital whose local model does best everywhere, as if nobody had shared anything.

Read from a finished local-only run that scored every model at every site (``evaluation.cross_site``). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..results import RunRecords, by_site, cases_under, mean


@dataclass(frozen=True, kw_only=True)
class BestSite:
    """The hospital whose model was chosen, and how it does everywhere.

    Args:
        site: The hospital.
        per_case: The score (Dice; 1 and 0 of an image told right and wrong) of every test case of every site, those of
            the common test set and of unseen sites too, under its model, by (site, case); cases without one are left
            out.
        chosen_on: ``validation``: by the mean over the sites of the scores of their validation cases; ``test``: the
            same on test cases, where no site has validation cases. Then the number is optimistic: the choice and
            the score rest on the same volumes.
    """

    site: str
    per_case: Mapping[tuple[str, str], float]
    chosen_on: Literal["validation", "test"]


def best_single_site(records: RunRecords) -> BestSite:
    """The best local model of a run.

    Sites that were left out of the training have no say in the choice. Of equal models the first by name is taken.

    Args:
        records: A finished run whose aggregator is ``local``, with ``evaluation.cross_site``.

    Raises:
        ValueError: models were not scored at other sites.
    """
    names = sorted({row.trained_at for row in records.across})
    if not names:
        raise ValueError(
            f"{records.path}: expected a finished run with evaluation.cross_site: true, but no model was scored at "
            "another site"
        )
    validated = any(row.split == "validation" for row in records.across)
    chosen_on: Literal["validation", "test"] = "validation" if validated else "test"
    scores = {name: _everywhere(records, name, chosen_on) for name in names}
    site = max(names, key=lambda name: scores[name])
    scores_there = cases_under(records, site)
    defined = {place: value for place, value in scores_there.items() if value is not None}
    return BestSite(site=site, per_case=defined, chosen_on=chosen_on)


def _everywhere(records: RunRecords, name: str, split: str) -> float:
    """The mean over the sites of the score of a hospital's model; -1 where it is defined nowhere."""
    score = mean(by_site(cases_under(records, name, (split,))).values())
    return -1.0 if score is None else score
