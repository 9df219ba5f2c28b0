"""Weights that come with the package: ``sam-mini``, made by ``wardround.clients.pretraining``."""
