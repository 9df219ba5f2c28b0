"""Plug-ins for wardround; an experiment names them by ``class: mywards.MODULE:CLASS``.

``diloco`` has an aggregator, ``norm_tuning`` a method, ``npz_volumes`` a data set, and ``example`` writes a small one.
"""
