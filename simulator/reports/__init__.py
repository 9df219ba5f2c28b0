"""Pages about runs, sweeps, replays and data, and the tables and drawings they are made of.

``page`` renders and knows nothing of runs; ``figures`` and ``sweep_figures`` draw; the others each write one kind of
page. Nothing in here needs torch.
"""
