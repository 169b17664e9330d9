"""Comparisons over seeds, strengths and injections: trials that each measure one template or reference."""
