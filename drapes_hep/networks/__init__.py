"""Backbones: what turns (x, noise, condition) into numbers. Independent of schedules and physics.

Each is imported from its own module, so that a search of features does not load the networks of sets.
"""
