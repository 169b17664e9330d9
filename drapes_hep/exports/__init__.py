"""Results of a finished run in the formats of other tools."""
