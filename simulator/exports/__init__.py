"""``wardround export``: a run's model for other programs. One file per format, one table.

A new format is a function that suits :class:`~wardround.simulator.exports.contract.Format` and a row of ``FORMATS``.
"""
