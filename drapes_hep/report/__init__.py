"""The page a reviewer opens: figures, tables and ``report/index.html`` from the files of a run directory.

Nothing is computed here that a result holds: numbers come from ``results.json``, ``hunt.json`` and the windows' files,
and the page names the file. The same files give the same bytes. In a blinded run nothing in any window is drawn.

A module imports only from those before it: ``run_files``, ``format``, ``extract``, ``pictures``, ``figures``,
``points_to_check``, ``sections``, ``tables``, ``page``.
"""

from drapes_hep.report.page import report_figures, write_report

__all__ = ["report_figures", "write_report"]
