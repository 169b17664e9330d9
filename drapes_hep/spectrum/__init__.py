"""The falling spectrum: shapes, fits, expectations, masses drawn from it."""
