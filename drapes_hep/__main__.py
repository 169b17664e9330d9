"""``python -m drapes_hep``, and the console script ``drapes``."""

from drapes_hep.guard import guarded

__all__ = ["main"]


def main() -> None:
    """Run the command line in a process that is watched."""
    guarded(_command)


def _command() -> None:
    # what it imports, the watching process does not need
    from drapes_hep.cli import main as command

    command()


if __name__ == "__main__":
    main()
