"""Runs a federation: configuration, streams of randomness, round loop, checkpoints, report, command line.

Reading order: ``config`` (what an experiment is), ``run`` (from an experiment to a run directory), ``federation`` (one
round), ``rundir`` and ``checkpoint`` (what stays on disk), ``report`` (what people see), ``cli`` (the command).

A new experiment is an entry of ``experiments.yaml``. A new setting is a field of the dataclass it belongs to: that is
all ``config`` needs to read, check and record it.
"""
