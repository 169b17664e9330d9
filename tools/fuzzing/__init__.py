"""Fuzzing of whatever is read: mutated files and configurations end in a result or in one line, never in a traceback.

``tools/fuzz.py`` is the command; ``tests/test_fuzz_seeds.py`` replays the recipes of what once failed.
"""
