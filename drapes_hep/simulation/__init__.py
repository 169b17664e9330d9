"""Simulated dijet events: Pythia's collisions, a parametrised detector, files in layouts of the readers."""
