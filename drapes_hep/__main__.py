"""``python -m drapes_hep``."""

from drapes_hep.cli import main

main()
