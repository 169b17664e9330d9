"""Call a user's hook: where it is defined, and one line for whatever goes wrong inside it."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

from drapes_hep.errors import ConfigError, UsersCode, describe_error
from drapes_hep.events.types import AwkwardArray, Events
from drapes_hep.plugins import SOURCE, STRIPPED, is_users, names_defined

__all__ = ["Hook"]

_NO_FIELD = re.compile(r"no field (?:named )?'([^']*)'")
"""How awkward says that a record has no such field, as attribute or as item."""

_GUIDE = "docs/how-to.md, 'Use trigger, golden JSON, jet identification and corrections'"


@dataclass(frozen=True)
class Hook:
    """A method of a processor that the user may replace.

    Parameters
    ----------
    name : str
        Its name.
    owner : type
        The class that defines it.
    function : callable
        The bound method.
    """

    name: str
    owner: type
    function: Callable[..., Any]

    @classmethod
    def of(cls, processor: Any, name: str, arguments: tuple[str, ...] = ("events",)) -> Hook:
        """Look a hook up.

        Parameters
        ----------
        processor : object
            An instance of the user's class.
        name : str
            Of the method.
        arguments : tuple of str
            Names of what it is called with.

        Returns
        -------
        Hook

        Raises
        ------
        ConfigError
            There is no such method, or it cannot be called with the arguments.
        """
        kind = type(processor)
        owner = next((base for base in kind.__mro__ if name in vars(base)), kind)
        form = f"define it as def {name}(self, {', '.join(arguments)})"
        try:
            function = getattr(processor, name)
        except AttributeError:
            raise ConfigError(f"{kind.__name__} has no method '{name}'; {form}") from None
        hook = cls(name, owner, function)
        if not callable(function):
            raise ConfigError(f"{hook}: is not a method but a {type(function).__name__}; {form}")
        if not _accepts(function, arguments):
            raise ConfigError(f"{hook}: cannot be called with ({', '.join(arguments)}); {form}")
        return hook

    def __str__(self) -> str:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        place = ""
        if isinstance(code, CodeType) and (file := self._file_of(code)) != STRIPPED:
            place = f" ({file}, line {code.co_firstlineno})"
        return f"{self.owner.__name__}.{self.name}{place}"

    def call(self, events: Events, *arguments: AwkwardArray) -> Any:
        """Call the hook.

        Parameters
        ----------
        events : NanoEvents
            Its first argument.
        *arguments : awkward.Array
            Its others.

        Returns
        -------
        object
            Whatever it returns.

        Raises
        ------
        ConfigError
            It raised; the line names the hook, the place in the user's file, and what to do.
        """
        with UsersCode(lambda error: self._failed(error, events)):
            return self.function(events, *arguments)

    def _failed(self, error: BaseException, events: Events) -> ConfigError:
        return ConfigError(f"{self}: {describe_error(error, is_users, self._file_of)}; {_remedy(error, events)}")

    def _file_of(self, code: CodeType) -> str:
        """Return the file of code, also of a class that travelled by value."""
        if code.co_filename != STRIPPED:
            return code.co_filename
        defined = names_defined(self.owner).get(code.co_qualname.partition(".")[0])
        return str(defined or vars(self.owner).get(SOURCE, STRIPPED))


def _accepts(function: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    """Whether a function can be called with these arguments, and does not take them in another order."""
    try:
        bound = inspect.signature(function).bind(*arguments).arguments
    except TypeError:
        return False
    except ValueError:  # a callable that shows no signature
        return True
    return all(name not in arguments or value == name for name, value in bound.items())


def _remedy(error: BaseException, events: Events) -> str:
    text = str(error)
    missing = _NO_FIELD.search(text)
    if missing is not None and isinstance(error, AttributeError | LookupError):
        fields = {"events": events.fields, "events.jets": events.jets.fields}
        listed = ", and ".join(
            f"{name} holds {', '.join(field for field in names if field[0] != '_')}" for name, names in fields.items()
        )
        close = difflib.get_close_matches(missing[1], [field for names in fields.values() for field in names], n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{hint}{listed}; a hook can read any other column from the file, see {_GUIDE}"
    if "read-only" in text:
        return "events are read-only: change a copy"
    if isinstance(error, ImportError):
        return "install it in this environment, or put its folder on PYTHONPATH"
    if isinstance(error, FileNotFoundError):
        return "relative paths start from the directory where drapes was started"
    if not isinstance(error, Exception):
        return "return from the hook instead"
    return "correct this line"
