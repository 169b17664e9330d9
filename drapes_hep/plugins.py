"""Objects that a configuration names: processors, methods, classifiers, networks, features and mass shapes.

``NAME``
    One of the package's own, or one that an installed package offers (:mod:`drapes_hep.entry_points`). The package's
    own names win.
``path/to/file.py:Class``
    A file that the user edits. A relative path is looked for in the working directory, then beside the configuration,
    then in the folder above it (the project's), then in the package's own starter. A file that loads another one looks
    in the same places.
``package.module:Class``
    What Python can import.
"""

from __future__ import annotations

import copyreg
import dataclasses
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped, unused-ignore]

from drapes_hep.entry_points import entry_points_by_name, unknown_name
from drapes_hep.errors import ConfigError, UsersCode, reason_of
from drapes_hep.files import file_hash
from drapes_hep.user_files import modules_of, unwatched, watched

__all__ = [
    "NEEDS",
    "SOURCE",
    "STRIPPED",
    "Kind",
    "check_options",
    "class_sources",
    "class_with",
    "is_users",
    "load_class",
    "load_module",
    "load_object",
    "load_processor",
    "load_source",
    "names_defined",
    "package_version",
    "processor_folders",
    "source_hashes",
    "starter_folder",
]

SOURCE = "__drapes_source__"
"""Attribute in which a class that was loaded by path keeps its file."""

STRIPPED = "<dynamic-code>"
"""What cloudpickle (from 3.1.3 on) writes for the file of code that travels by value."""
NEEDS = (
    "a processor needs three things for a search: __init__(self, settings), and in the output of process(self, events)"
    " a 'cutflow' and a 'skim' of the selected events (docs/how-to.md#use-a-coffea-processor)"
)
"""What a processor of coffea's must offer beyond what coffea asks of it."""

_MODULE = "_drapes_processor_"

_SEARCHED: ContextVar[tuple[Path, ...] | None] = ContextVar("_SEARCHED", default=None)
"""Where the processor file that runs just now was looked for."""

# A class that travels by value is set up anew where it is unpickled, which may be this process. Its dataclass fields
# must then hold the one MISSING that dataclasses compares with, not a copy: a subclass would take it for a default.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")


def starter_folder() -> Path:
    """Return the folder that holds ``processors/`` and ``configs/``: inside the wheel, or the checkout's root."""
    package = Path(__file__).resolve().parent
    starter = package / "starter"
    return starter if starter.is_dir() else package.parent


def processor_folders(config_folder: Path | None = None) -> tuple[Path, ...]:
    """Return the folders where a processor's relative path is looked for, in this order.

    Parameters
    ----------
    config_folder : Path, optional
        Where the configuration lies.

    Returns
    -------
    tuple of Path
    """
    project = () if config_folder is None else (config_folder, config_folder.parent)
    return tuple(dict.fromkeys((Path.cwd(), *project, starter_folder())))


def class_sources(kind: type) -> tuple[Path, ...]:
    """List the files that define a class and the classes that it is made of.

    Parameters
    ----------
    kind : type
        A user's class, or one of this package.

    Returns
    -------
    tuple of Path
        In the order of the classes; the package itself, whose hash is another matter, and, behind the class itself,
        what is installed are left out.
    """
    package, library = Path(__file__).resolve().parent, Path(sysconfig.get_path("stdlib")).resolve()
    out: dict[Path, None] = {}
    for base in kind.__mro__:
        try:
            source = inspect.getsourcefile(base)
        except (TypeError, OSError):  # built in, or made where no file is
            continue
        if source is None:
            continue
        path = Path(source).resolve()
        own = base.__module__.startswith(_MODULE) or base is kind
        installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(library)
        if path.is_relative_to(package) and not path.is_relative_to(package / "starter"):
            continue
        if path.is_file() and (own or not installed):
            out[path] = None
    return tuple(out)


def is_users(file: str) -> bool:
    """Whether a file of code is the user's: neither Python's, nor installed, nor of this package."""
    foreign = (str(Path(__file__).resolve().parent), sysconfig.get_path("stdlib"), "<frozen")
    return "site-packages" not in file and not file.startswith(foreign)


def names_defined(kind: type) -> dict[str, str]:
    """Return the files of all that the modules of a class and its bases define, by name.

    Parameters
    ----------
    kind : type
        A user's class. What its own module defines wins over what its bases' modules do.

    Returns
    -------
    dict of str to str
    """
    files: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        module = sys.modules.get(base.__module__)
        file = getattr(module, "__file__", None)
        if file is not None and "site-packages" not in file:
            own = (name for name, item in vars(module).items() if getattr(item, "__module__", None) == base.__module__)
            files |= dict.fromkeys(own, file)
    return files


_HASHES: dict[Any, tuple[str, ...]] = {}
_VERSIONS: dict[Any, str] = {}
"""Of the installed packages that offer a class by an entry point."""


def source_hashes(kind: Any) -> tuple[str, ...]:
    """Return what a user's class or function rests on, as it was when this was first asked: ask when it is imported.

    Parameters
    ----------
    kind : type or function
        A user's, or one of this package.

    Returns
    -------
    tuple of str
        Hashes of :func:`class_sources` and of the user's other modules that these import
        (:func:`drapes_hep.user_files.modules_of`), and the version of the installed package, if it is in one. A
        file that is edited later does not change the class at work, nor what it is called.
    """
    if kind not in _HASHES:
        own = class_sources(kind) if isinstance(kind, type) else _function_sources(kind)
        # their order must not depend on where they lie
        others = sorted(file_hash(path) for path in {*modules_of(kind).values()} - set(own))
        _HASHES[kind] = (*(file_hash(path) for path in own), *others, *package_version(kind))
    return _HASHES[kind]


def _function_sources(target: Any) -> tuple[Path, ...]:
    file = inspect.getsourcefile(inspect.unwrap(target))
    return () if file is None else (Path(file).resolve(),)


def package_version(target: Any) -> tuple[str, ...]:
    """Return the name and version of the installed package that holds a class or function; nothing for this one."""
    if target in _VERSIONS:
        return (_VERSIONS[target],)
    top = str(target.__module__).partition(".")[0]
    if top == __name__.partition(".")[0] or top.startswith(_MODULE) or top in sys.stdlib_module_names:
        return ()
    names = sorted(set(metadata.packages_distributions().get(top, ())))
    return tuple(f"{name} {metadata.version(name)}" for name in names)


@dataclass(frozen=True)
class Kind:
    """A kind of object that a key of the configuration names.

    Attributes
    ----------
    name : str
        Of its entry points: ``classifier`` of ``classifier.lightgbm``.
    key : str
        The key, for messages.
    noun : str
        What such an object is called, with its article.
    problem_of : callable
        An object to what it lacks to be one, as a clause such as "needs the method fit"; None where it is one.
    own : mapping of str to str
        The package's own: ``package.module:Class`` by name.
    """

    name: str
    key: str
    noun: str
    problem_of: Callable[[Any], str | None]
    own: Mapping[str, str] = field(default_factory=dict)

    def is_own(self, name: str) -> bool:
        """Whether a name is one of the package's own."""
        return name in self.own


def load_object(kind: Kind, name: str, search: Sequence[str | Path] | None = None) -> Any:
    """Load what a configuration names.

    A class loaded by path is registered with cloudpickle to travel by value: worker processes have no module of that
    name to import.

    Parameters
    ----------
    kind : Kind
    name : str
        As the module's text says.
    search : sequence of path, optional
        Where a relative path is looked for, in this order; :func:`processor_folders` by default, or where the file
        that asks for it was looked for itself.

    Returns
    -------
    object
        The class, not an instance.

    Raises
    ------
    ConfigError
        There is no such name, file, module or object, it does not run, or it is not of this kind.
    """
    where, target = f"{kind.key} '{name}'", kind.own.get(name, name)
    version = ""
    if ":" not in target:
        target, version = _entry_point(kind, name)
        where += f" (entry point {target})"
    place, _, attribute = target.rpartition(":")
    if not place or not all(part.isidentifier() for part in attribute.split(".")):
        raise ConfigError(f"{where}: expected 'path/to/file.py:Class' or 'package.module:Class'")
    if place.endswith(".py"):
        module = load_module(where, place, search)
    else:
        fails = f"{where}: module {place} cannot be imported"
        with UsersCode(lambda error: ConfigError(f"{fails} ({_reason(error)})")), watched():
            module = importlib.import_module(place)
    item: Any = module
    for part in attribute.split("."):
        item = getattr(item, part, None)
    if item is None:
        defined = [key for key, item in vars(module).items() if getattr(item, "__module__", None) == module.__name__]
        fits = [key for key in defined if kind.problem_of(getattr(module, key)) is None]
        close = difflib.get_close_matches(attribute, fits, n=1, cutoff=0.3) or fits[:1]
        hint = f"did you mean '{close[0]}'?" if close else f"it does not define {kind.noun}"
        raise ConfigError(f"{where}: no class '{attribute}' in {place}; {hint}")
    problem = kind.problem_of(item)
    if problem is not None:
        raise ConfigError(f"{where}: '{attribute}' is not {kind.noun}: it {problem}")
    if version:
        _VERSIONS[item] = version
    if isinstance(item, type):
        # now, as it is imported: the file may be edited while the class is at work
        source_hashes(item)
    return item


def _entry_point(kind: Kind, name: str) -> tuple[str, str]:
    """Return the ``module:Class`` that an installed package offers under a name, and the package with its version."""
    points = entry_points_by_name(kind.name)
    if name not in points:
        noun = kind.noun.partition(" ")[2]
        raise ConfigError(f"{kind.key}: {unknown_name(noun, name, [*kind.own, *points])}")
    if len(points[name]) > 1:
        which = " and ".join(f"{point.value} ({point.dist.name if point.dist else '?'})" for point in points[name])
        raise ConfigError(f"{kind.key} '{name}': several installed packages offer it: {which}; name one of these")
    (point,) = points[name]
    version = f"{point.dist.name} {point.dist.version}" if point.dist else ""
    # extras belong to its installation
    return point.value.partition("[")[0].strip().replace(" ", ""), version


def _processor_problem(candidate: Any) -> str | None:
    if isinstance(candidate, type) and callable(getattr(candidate, "process", None)):
        return None
    kind = "function" if callable(candidate) and not hasattr(candidate, "process") else type(candidate).__name__
    return f"is a {kind}, not a class with a method process(events); {NEEDS}"


_PROCESSOR = Kind("processor", "processor", "a processor", _processor_problem)


def load_processor(name: str, search: Sequence[str | Path] | None = None) -> Any:
    """Load a processor's class, as :func:`load_object` does.

    Parameters
    ----------
    name : str
    search : sequence of path, optional

    Returns
    -------
    type
        The class, not an instance.

    Raises
    ------
    ConfigError
        No such file or module, no such class, not a processor, or the file does not run.
    """
    processor: Any = load_object(_PROCESSOR, name, search)
    _check_names(name, processor)
    return processor


def _check_names(name: str, processor: type) -> None:
    """Refuse a method whose name is nearly that of a method it would replace: it would never be called."""
    for kind in processor.__mro__:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file is None or not is_users(file):
            continue
        above = {
            key
            for base in kind.__mro__[1:]
            for key, attribute in vars(base).items()
            if callable(attribute) and key[0] != "_"
        }
        for own in [
            key for key, attribute in vars(kind).items() if callable(attribute) and key not in above and key[0] != "_"
        ]:
            close = difflib.get_close_matches(_letters(own), map(_letters, above), n=1, cutoff=0.85)
            intended = [key for key in above if close == [_letters(key)] and abs(len(key) - len(own)) <= 2]
            if intended:
                raise ConfigError(
                    f"processor '{name}': {kind.__name__} defines '{own}', which nothing calls; did you mean"
                    f" '{intended[0]}'? Give a helper function a less similar name"
                )


def _letters(name: str) -> str:
    return name.lower().replace("_", "")


def _reason(error: BaseException) -> str:
    return f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else reason_of(error)


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compile the source itself: no bytecode beside the user's files, none that an edit in the same second fools."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file as it is now."""
        path = self.get_filename(fullname)
        with unwatched():
            source = self.get_data(path)
        return self.source_to_code(source, path)  # type: ignore[no-any-return, unused-ignore]


def load_source(name: str, path: Path) -> ModuleType:
    """Run a user's file as a module of this name; whatever it raises comes out.

    Parameters
    ----------
    name : str
        A module of this name is replaced.
    path : Path

    Returns
    -------
    module
    """
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    """Name a file by its content: an edited file is a new module, the same file is loaded once."""
    with unwatched():
        content = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()[:12]
    return f"{_MODULE}{path.stem.replace('-', '_')}_{digest}"


def _current(module: ModuleType) -> bool:
    """Whether the files that a module's classes inherit from are still as they were loaded."""
    bases = {base for item in vars(module).values() if isinstance(item, type) for base in item.__mro__}
    used = {base.__module__ for base in bases if base.__module__.startswith(_MODULE)}
    files = {name: Path(str(sys.modules[name].__file__)) for name in used if name in sys.modules}
    return all(path.is_file() and _module_name(path) == name for name, path in files.items())


@contextmanager
def _searching(folders: tuple[Path, ...]) -> Iterator[None]:
    token = _SEARCHED.set(folders)
    try:
        yield
    finally:
        _SEARCHED.reset(token)


def load_module(where: str, place: str, search: Sequence[str | Path] | None = None) -> ModuleType:
    """Load a user's file as a module; a file that did not change is loaded once.

    Its classes are registered with cloudpickle to travel by value: worker processes have no module of that name.

    Parameters
    ----------
    where : str
        Which key of the configuration names it, for messages.
    place : str
        Path of the file.
    search : sequence of path, optional
        Where a relative path is looked for, as for :func:`load_processor`.

    Returns
    -------
    module

    Raises
    ------
    ConfigError
        If there is no such file, or it does not run.
    """
    folders = tuple(map(Path, search)) if search is not None else _SEARCHED.get() or processor_folders()
    candidates = [folder / place for folder in folders]  # an absolute place replaces the folder
    path = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if path is None:
        near = [p.name for c in candidates if c.parent.is_dir() for p in c.parent.glob("*.py")]
        close = difflib.get_close_matches(Path(place).name, near, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"looked in {', '.join(str(f) for f in folders)}"
        raise ConfigError(f"{where}: no file {place}; {hint}")
    key = _module_name(path)
    if key in sys.modules and _current(sys.modules[key]):
        return sys.modules[key]
    fails = f"{where}: {path} does not run"
    with UsersCode(lambda error: ConfigError(f"{fails} ({_reason(error)})")), _searching(folders), watched():
        module = load_source(key, path)
    for item in vars(module).values():
        if isinstance(item, type) and item.__module__ == key:
            # travels with the class, whose code is stripped of its file
            setattr(item, SOURCE, str(path))
    cloudpickle.register_pickle_by_value(module)
    return module


def class_with(*methods: str) -> Callable[[Any], str | None]:
    """Return the rule of a :class:`Kind`: a class that has these methods."""

    def problem_of(candidate: Any) -> str | None:
        missing = [name for name in methods if not callable(getattr(candidate, name, None))]
        if not isinstance(candidate, type):
            return "is not a class"
        return f"needs the method {missing[0]}" if missing else None

    return problem_of


def load_class(kind: Kind, name: str, folder: Path | None = None) -> Any:
    """Load a class by its name in the configuration.

    Parameters
    ----------
    kind : Kind
    name : str
        As the module says.
    folder : Path, optional
        Where the configuration lies.

    Returns
    -------
    type

    Raises
    ------
    ConfigError
        As :func:`load_object`.
    """
    return load_object(kind, name, processor_folders(folder))


def check_options(key: str, name: str, kind: type[Any], options: Mapping[str, Any], reserved: Sequence[str]) -> None:
    """Refuse options that a class does not take.

    Parameters
    ----------
    key : str
        The key of the configuration that holds them.
    name : str
        Of the class.
    kind : type
    options : mapping
    reserved : sequence of str
        Arguments that are not options.

    Raises
    ------
    ConfigError
        With the options that there are.
    """
    parameters = inspect.signature(kind).parameters
    free = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    offered = [
        key
        for key, parameter in parameters.items()
        if key not in reserved and parameter.kind is not parameter.VAR_KEYWORD
    ]
    strange = [option for option in options if option in reserved or (option not in parameters and not free)]
    if strange:
        has = f"it has {', '.join(offered)}" if offered else "it has none"
        raise ConfigError(f"{key}: {name} has no option '{strange[0]}'; {has}")
    needed = [
        option
        for option, parameter in parameters.items()
        if option in offered
        and parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_POSITIONAL
        and option not in options
    ]
    if needed:
        raise ConfigError(f"{key}: {name} needs the option '{needed[0]}'")
