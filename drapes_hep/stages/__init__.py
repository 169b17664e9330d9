"""The stages of a search, as plain functions: each reads files and writes files."""
