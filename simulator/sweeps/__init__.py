"""Many runs that are compared with each other: what there is to run, running it, and what came of it.

::

    definition -> plan (+ references) -> [estimate] -> execution -> records -> results (statistics, costs, checks)

What reads (records, results, statistics, costs, checks) needs no torch.
"""
