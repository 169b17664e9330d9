"""The run directory, the description of a stage, and what decides whether it runs again."""
