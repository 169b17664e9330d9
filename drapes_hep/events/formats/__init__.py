"""Kinds of files and spellings of columns, read into the one event schema."""
