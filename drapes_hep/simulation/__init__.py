"""Simulated dijet events: Pythia's collisions, a parametrised detector, files in the layouts that the readers know."""
