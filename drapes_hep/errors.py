"""Named exceptions: every way in which a user's input can be wrong, each with one clear line.

The command line turns a :class:`DrapesError` into one line on standard error and exit status 2. Anything else that
escapes is a defect of this project and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, TracebackType

__all__ = [
    "ConfigError",
    "DrapesError",
    "FitError",
    "InputError",
    "LeakError",
    "LostEventsError",
    "RunDirectoryError",
    "UsersCode",
    "counted",
    "describe_error",
    "exit_line",
    "printable",
    "reason_of",
    "unnumbered",
    "without_secrets",
]


_LONGEST_WORD = 255
"""As long as the name of a file can be."""
_LONGEST_LINE = 1000
_WORD = re.compile(rf"[^\s/\\]{{{_LONGEST_WORD + 1},}}")


def printable(text: str) -> str:
    r"""Write text of any origin so that it is one line on a terminal, and no more than that.

    Parameters
    ----------
    text : str
        May hold names and values of files.

    Returns
    -------
    str
        Line breaks are spaces, other characters that cannot be printed are escaped (``\x1b``, ``\u202e``): a terminal
        would obey them. URLs are :func:`without_secrets`. A word that is longer than a file's name can be is cut in its
        middle.
    """
    line = re.sub(r"\s*[\n\r]\s*", " ", without_secrets(text).strip(" \n\r"))
    line = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)
    return _WORD.sub(lambda word: _cut(word[0], _LONGEST_WORD // 2), line)


_URL = re.compile(r"(?<=://)[^\s'\"<>]+")
_USER = re.compile(r"^[^/?#]*@")
_VALUE = re.compile(r"(?<=[?&;])([^=&?]+)=([^&]*?)(?=[;:,.)\]}]*(?:&|$))")
_SECRET = re.compile(r"token|sig|secret|key|passw|pwd|auth|cred|session|jwt|bearer", re.IGNORECASE)
_LONG = 20
"""Characters from which on the value of a query may be a secret, whatever it is called."""


def without_secrets(text: str) -> str:
    """Leave out of the URLs of a text what may open them to others: user and password, tokens and signatures.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        With ``...`` in their place.
    """
    return _URL.sub(lambda url: _VALUE.sub(_hidden, _USER.sub("...@", url[0])), text)


def _hidden(query: re.Match[str]) -> str:
    name, value = query.groups()
    return f"{name}=..." if len(value) >= _LONG or _SECRET.search(name) else query[0]


def _cut(text: str, longest: int) -> str:
    begin = 2 * longest // 3
    return text if len(text) <= longest else f"{text[:begin]}... ...{text[begin - longest :]}"


class DrapesError(Exception):
    """Base of the errors that a user can mend; as text always one printable line."""

    def __str__(self) -> str:
        """Return what is wrong, :func:`printable` and of bounded length, whatever it quotes."""
        return _cut(printable(super().__str__()), _LONGEST_LINE)


class ConfigError(DrapesError):
    """A configuration that cannot be run: unknown key, wrong type, inverted window."""


class InputError(DrapesError):
    """An input file that cannot be read as events.

    Parameters
    ----------
    path : str or Path
        The file.
    problem : str
        What is wrong with it.
    remedy : str
        What the user can do.
    """

    def __init__(self, path: str | Path, problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = str(path), problem, remedy
        super().__init__(f"{path}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        # exceptions travel back from worker processes: without this, unpickling calls __init__ with one argument
        return type(self), (self.path, self.problem, self.remedy)


class LostEventsError(DrapesError):
    """Fewer (or more) events were processed than were requested."""


class RunDirectoryError(DrapesError):
    """A run directory that cannot be used: another version's, not writable, an incomplete stage."""


class FitError(DrapesError):
    """A fit that did not converge or has nothing to constrain it."""


class LeakError(DrapesError):
    """A model was given events that it must not see."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun in agreement: 1 event, 2 events.

    Parameters
    ----------
    number : int
    noun : str
        Singular.
    plural : str, optional
        Where it is not the singular with an s.

    Returns
    -------
    str
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


class UsersCode:
    """Run a user's code: whatever it raises, SystemExit included, becomes an error of one line.

    Ctrl-C, a lack of memory, and what is one line already pass. A copy of the process that the code forked ends with
    it: it would go on with the parent's work a second time.

    Parameters
    ----------
    refuse : callable
        Makes a :class:`DrapesError` of what was raised.
    """

    def __init__(self, refuse: Callable[[BaseException], DrapesError]) -> None:
        self._refuse = refuse

    def __enter__(self) -> None:
        self._pid = os.getpid()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            os._exit(_status_of(error))
        if error is not None and not isinstance(error, DrapesError | KeyboardInterrupt | MemoryError):
            raise self._refuse(error) from error


def _status_of(error: BaseException | None) -> int:
    """Return the exit status that Python would leave with."""
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    return (code if isinstance(code, int) else int(code is not None)) & 0xFF


def exit_line(error: SystemExit) -> str:
    """Return in one line that code in a search has called for its end, and where."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "_sitebuiltins" not in frame.filename]
    caller = f"{places[-1].filename}, line {places[-1].lineno}" if places else "an unknown place"
    return f"ended by sys.exit({error.code!r}) in {caller}: code in a search must not exit"


def unnumbered(text: str) -> str:
    """Return a message without numbers of events, which a blinded run must not reveal."""
    return re.sub(r"\b\d+ events?\b", "the events", text)


def describe_error(
    error: BaseException, own: Callable[[str], bool], file_of: Callable[[CodeType], str] = lambda code: code.co_filename
) -> str:
    """Return in one line what went wrong in a user's file, and where.

    Parameters
    ----------
    error : BaseException
        As it was caught.
    own : callable
        Says of a file's name whether it is the user's.
    file_of : callable
        Gives the file of a code object, where it does not name it itself.

    Returns
    -------
    str
        With the innermost line of user code: the libraries that it calls are rarely at fault.
    """
    places = [(file_of(frame.f_code), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    file, line = ([place for place in places if own(place[0])] or places)[-1]
    return f"{reason_of(error)} ({file}, line {line})"


def reason_of(error: BaseException) -> str:
    """Return the type and the first line of an exception; other ones than errors, such as SystemExit, end a program."""
    line = str(error).strip().partition("\n")[0]
    reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return reason if isinstance(error, Exception) else f"it ends the program ({reason})"
