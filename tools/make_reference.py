"""Write what docs/ says of commands, configuration, features and layouts from the code, and the two JSON schemas.

    python tools/make_reference.py

``tests/test_docs.py`` fails where the files are not what this script would write.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import drapes_hep  # noqa: E402
from drapes_hep import outcome, products  # noqa: E402
from drapes_hep.cli import app  # noqa: E402
from drapes_hep.config import Config, schema  # noqa: E402
from drapes_hep.data.inspection import inspection_schema  # noqa: E402
from drapes_hep.events.features import FEATURES  # noqa: E402
from drapes_hep.events.formats.layouts import LAYOUTS  # noqa: E402
from drapes_hep.keys import section_of  # noqa: E402
from drapes_hep.results import results_schema  # noqa: E402

HEAD = """# Reference

This page is written by `tools/make_reference.py` from the code.

- [Command line](#command-line)
- [Configuration](#configuration)
- [Features](#features)
- [File layouts](#file-layouts)

The files of a run are described in [run-directory.md](run-directory.md). There are schemas for `results.json`
([results.schema.json](results.schema.json)), for configurations ([config.schema.json](config.schema.json)), and for the
output of `drapes inspect --json` ([inspection.schema.json](inspection.schema.json)).
"""

COMMANDS = """## Command line

`run` runs all stages; `skim` to `report` run one stage each, in this order. All stages except `report` have the same
options; options that a stage does not use have no effect. A single stage stops if an earlier one was run with another
configuration. A finished stage of another configuration is replaced only with `--overwrite`
([how](how-to.md#change-the-configuration-of-a-finished-run)).

| exit status | meaning |
| --- | --- |
| 0 | Success. |
| 2 | A mistake, a file that cannot be used, or code that ended the process; reported in one line. |
| 130, 143, 129 | Ended by Ctrl-C, SIGTERM or SIGHUP; one line states what is kept. |
| 141 | The output is no longer read, for example by `head`. |
| 128 + n | Killed by signal n, such as 137 (out of memory) or 139 (a crash); one line states the stage. |
| 1 | A defect of this program, with its traceback. |

Messages and progress bars are written to standard error; bars only to a terminal. Standard streams may be closed.
`python -m drapes_hep` is the same as `drapes`. The command runs in a child process, so that an error and a status are
reported even if the code ends the process. Set `DRAPES_HEP_GUARD=0` in the environment to avoid the child process, for
debuggers and profilers.
"""

CONFIGURATION = """## Configuration

A YAML file. Masses and momenta are in GeV. Unknown keys are errors. `data.path` and `data.truth` are relative to the
file, or to the working directory in `--set`. A relative `processor` is searched for in the working directory, in the
folder of the file, in its parent folder, and in the package. `--set section.key=value` takes a value in YAML and can be
repeated.

Values follow the rules of YAML 1.2, in the file and in `--set`. Integers can be written as `10000`, `10_000` or `1e4`;
`0123` is refused, since it is 83 in YAML 1.1. `true`, `false`, `yes`, `no`, `on` and `off` are booleans for keys that
expect them, and text otherwise; `12:30` and `2016-01-02` are text. Booleans are not numbers, and quoted text is neither
a number nor a boolean: `blind: "no"` is refused. A section without keys has its defaults.
"""

FEATURES_TEXT = """## Features

J1 is the heavier and J2 the lighter of the two jets with the largest pT. m_JJ cannot be a feature. Other features are
[defined in the configuration](how-to.md#define-a-feature-in-the-configuration).
"""

LAYOUTS_TEXT = """## File layouts

The format of a file is determined by its content, not by its name. ROOT files (TTree, RNTuple) and Parquet files can
have the layouts `features`, `skim` and the layouts of CMS and Delphes, HDF5 files `features` (as pandas writes them),
`lhco_raw` (a table of numbered columns) and `simulated` (plain arrays). If several layouts fit, the first in this table
is used; `data.layout` selects another. Energies, momenta and masses are in GeV. A missing `weight` is 1. `label` is 1
for signal and 0 for background.

**Nested records.** A column can be a field of a record or of a list of records: the column `FatJet_pt` can be the field
`pt` of `FatJet`, as written by uproot with `file["Events"] = {"FatJet": ak.zip(...)}`. The name of the column is the
path to the numbers, joined with underscores. Dots and underscores are equivalent, `j1.px` can also be `pxj1`, and the
whole event can be one record. A field with exactly the name of the column is preferred.

**Identity.** `event_id` is an integer that is unique in the search. CMS files have `run`, `luminosityBlock` and `event`
instead. The event id is then the upper 63 bits of Philox4x32-10 with the counter (low and high word of the event
number, luminosity section, run), and the three numbers are kept in the skim, so that a selected event can be
identified. For data the key is (0, 0) for all files, so an event in two files is found. In simulated samples event
numbers repeat, so with `genWeight` the key is (first 31 bits of the SHA-256 of the file name without folder and last
suffix, 1). The numbers must then be unique in a file, and the event id depends on the file name. The same simulated
events in two files of different names count twice, unless the files are identical byte by byte. Otherwise, the event id
follows from this file name and the row. Two events with the same id are an error.

**URLs.** Every path can be a URL: `https://`, `root://` (with `pip install 'drapes-hep[xrootd]'`) and other protocols
of fsspec. Servers must support reading parts of files. `*` in a URL is a pattern if the server can list files, which is
not possible for http. The content of a URL is not hashed completely, except for `file://` and `memory://`. Its `ends:`
hash in the manifest covers the metadata of the server (ETag, checksum, time of the last change), the size, and the
first and last 64 KiB. Without metadata, the hash is `blocks:` and covers the size, both ends and 32 blocks of 64 KiB
spread evenly between them, which is the complete content up to 2.1 MiB. In larger files, a change between the blocks
that keeps the size is not detected. Labels of raw files (`.masterkey`) are also searched for at the URL. If the server
reports that there is no such file, there are no labels; any other response is an error.
"""


API_HEAD = """# API reference

This page is written by `tools/make_reference.py` from the docstrings. These names are the public interface of
`import drapes_hep`: changes are listed in the changelog. All other modules are internal. Masses are in GeV. [The
tutorial](tutorial.md#the-same-from-python) shows a search from Python.
"""

PRODUCTS_TEXT = """## What a search returns

Objects of these classes are returned by a search. Large columns and histograms are read from the run directory on first
access and cached.
"""


RESULTS_BEGIN = "<!-- written by tools/make_reference.py from here -->"
RESULTS_END = "<!-- to here -->"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _option(option: Any) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    flag = getattr(option, "is_flag", False)
    value = "" if flag else f" `{option.metavar or option.type.name.upper()}`"
    default = "" if flag or option.default is None or callable(option.default) else f"`{option.default}`"
    return names + value, default, option.help or ""


def command_line() -> str:
    """Describe every command; commands with the same options share a table."""
    group: Any = typer.main.get_command(app)
    parts = [COMMANDS, _table(("option", "default", "meaning"), [_option(o) for o in _options(group)])]
    shared: dict[tuple[tuple[str, ...], ...], list[tuple[str, str]]] = {}
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["drapes", name, *(a.metavar or a.name.upper() for a in arguments)])
        rows = [(f"`{a.metavar or a.name.upper()}`", "", a.help or "") for a in arguments]
        rows += [_option(o) for o in _options(command)]
        shared.setdefault(tuple(rows), []).append((f"`{usage} [OPTIONS]`", (command.help or "").strip()))
    for rows_of, verbs in shared.items():
        names = [usage.split()[1] for usage, _ in verbs]
        parts += ["### " + ", ".join(names), _table(("command", "what it does"), list(verbs))]
        parts += [_table(("argument or option", "default", "meaning"), list(rows_of))]
    return "\n\n".join(part.strip() for part in parts)


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_PLAIN = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "record",
}


def type_text(prop: Mapping[str, Any]) -> str:
    """Put a JSON schema's type into words."""
    if "anyOf" in prop:
        return " or ".join(type_text(choice) for choice in prop["anyOf"])
    if "$ref" in prop:
        return "section"
    if "enum" in prop:
        return " or ".join(f"`{value}`" for value in prop["enum"])
    if "const" in prop:
        return f"`{prop['const']}`"
    if isinstance(prop.get("additionalProperties"), dict):
        return f"{{text: {type_text(prop['additionalProperties'])}}}"
    if prop.get("type") == "array":
        if "prefixItems" in prop:
            return "[" + ", ".join(type_text(item) for item in prop["prefixItems"]) + "]"
        if prop.get("minItems", 0) == prop.get("maxItems", math.inf):
            return "[" + ", ".join([type_text(prop["items"])] * prop["minItems"]) + "]"
        return f"list of {type_text(prop['items'])}"
    words = _PLAIN[prop["type"]]
    bounds = [f"{sign} {prop[name]:g}" for name, sign in _BOUNDS.items() if name in prop]
    return f"{words} {', '.join(bounds)}" if bounds else words


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is not None:
            yield from _sections(section, f"{prefix}{name}.")
        elif get_origin(info.annotation) is dict:
            of = get_args(info.annotation)[1]
            if isinstance(of, type) and issubclass(of, BaseModel):
                yield from _sections(of, f"{prefix}{name}.NAME.")


def configuration() -> str:
    """Describe every key: type, default, meaning."""
    parts = [CONFIGURATION]
    for prefix, model in _sections(Config):
        described = model.model_json_schema()["properties"]
        rows = []
        for name, info in model.model_fields.items():
            if section_of(info) is not None:
                continue
            default = "required" if info.is_required() else f"`{_value(info.default)}`"
            rows.append((f"`{prefix}{name}`", type_text(described[name]), default, info.description or ""))
        title = f"### {prefix.rstrip('.')}" if prefix else "### Top level"
        parts += [title, inspect.cleandoc(model.__doc__ or ""), _table(("key", "type", "default", "meaning"), rows)]
    return "\n\n".join(part.strip() for part in parts)


def features() -> str:
    """Describe the features."""
    rows = []
    for feature in FEATURES.values():
        low, high = feature.domain
        domain = f"{low:g} and above" if math.isinf(high) else f"{low:g} to {high:g}"
        rows.append((f"`{feature.name}`", feature.label, feature.unit or "-", domain))
    return FEATURES_TEXT + "\n" + _table(("name", "symbol", "unit", "values"), rows)


def layouts() -> str:
    """Describe the layouts."""
    rows = [
        (f"`{layout.name}`", ", ".join(f"`{c}`" for c in layout.required), ", ".join(f"`{c}`" for c in layout.optional))
        for layout in LAYOUTS.values()
    ]
    about: dict[str, list[str]] = {}
    for layout in LAYOUTS.values():
        # layouts of one class are described once, without the parameters of the class
        text = " ".join((type(layout).__doc__ or "").partition("Parameters\n")[0].split())
        about.setdefault(text, []).append(f"`{layout.name}`")
    details = "\n\n".join(textwrap.fill(f"{', '.join(names)}: {text}", 120) for text, names in about.items())
    return LAYOUTS_TEXT + "\n" + _table(("layout", "required columns", "optional columns"), rows) + "\n\n" + details


def _fields(schema: Mapping[str, Any], documented: dict[str, str], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Return every field of a JSON schema, those of records within after the first record of their kind."""
    for name, prop in schema["properties"].items():
        inner = next((choice for choice in prop.get("anyOf", [prop]) if choice.get("type") != "null"), prop)
        path = f"{prefix}{name}."
        if inner.get("type") == "array":
            inner, path = inner["items"], f"{prefix}{name}[]."
        fields = json.dumps(inner.get("properties"), sort_keys=True)
        words = type_text(prop)
        same_as = documented.get(fields) if "properties" in inner else None
        yield (
            f"`{prefix}{name}`",
            words if same_as is None else words.replace("record", f"as `{same_as}`"),
            prop["description"],
        )
        if "properties" in inner and same_as is None:
            documented[fields] = name
            yield from _fields(inner, documented, path)


def run_directory() -> str:
    """Fill in the table of ``results.json``."""
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")
    before, rest = text.split(RESULTS_BEGIN)
    _, after = rest.split(RESULTS_END)
    rows = list(_fields(results_schema(), {}))
    return f"{before}{RESULTS_BEGIN}\n\n{_table(('field', 'type', 'meaning'), rows)}\n\n{RESULTS_END}{after}"


_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


def _markdown(text: str) -> str:
    return _ROLE.sub(r"`\1`", text).replace("``", "`")


def _paragraphs(text: str, indent: str = "") -> str:
    parts = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    filled = (textwrap.fill(_markdown(part), 120, initial_indent=indent, subsequent_indent=indent) for part in parts)
    return "\n\n".join(filled)


def _entries(text: str) -> Iterator[str]:
    """Yield a list item for every entry of a numpydoc section."""
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head, _, body = entry.partition("\n")
        name, separator, kind = head.partition(" : ")
        title = f"- `{name}`" + (f" ({_markdown(kind)})" if separator else "")
        words = " ".join(inspect.cleandoc(body).split())
        line = f"{title}: {_markdown(words)}" if words else title
        yield textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _docstring(thing: Any) -> str:
    """Write a numpydoc docstring as Markdown."""
    head, *sections = _SECTION.split(inspect.getdoc(thing) or "")
    parts = [_paragraphs(head)]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        parts.append(f"*{title}*")
        parts.append(_paragraphs(text) if title == "Notes" else "\n".join(_entries(text)))
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, thing: Any) -> str:
    """Write what a function takes, without the types, which its docstring has."""
    signature = inspect.signature(thing)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    bare = [parameter for parameter in bare if parameter.name not in {"self", "cls"}]
    text = name + str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return "```text\n" + textwrap.fill(text, 120, subsequent_indent="    ", break_on_hyphens=False) + "\n```"


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class defines, in its order."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, _MEMBERS)):
            yield name, member


_MEMBERS = (property, classmethod, functools.cached_property)


def _described(name: str, thing: Any, signature: bool = True) -> str:
    """Describe a function, or a class with its members."""
    called = signature and not getattr(thing, "_is_protocol", False)
    parts = [f"### {name}", *([_signature(name, thing)] if called else []), _docstring(thing)]
    for member, value in _members(thing) if isinstance(thing, type) else ():
        # a product is made by the search
        if isinstance(value, classmethod) and not signature:
            continue
        function = value.__func__ if isinstance(value, classmethod) else value
        parts.append(f"#### {name}.{member}")
        if not isinstance(value, (property, functools.cached_property)):
            parts.append(_signature(member, function))
        parts.append(_docstring(function))
    return "\n\n".join(parts)


def api() -> str:
    """Describe what the package offers, and what that returns."""
    public = {name: getattr(drapes_hep, name) for name in drapes_hep.__all__ if not name.startswith("__")}
    functions = [_described(name, item) for name, item in public.items() if not isinstance(item, type)]
    result_types = {name: getattr(module, name) for module in (products, outcome) for name in module.__all__}
    returned = [(name, item) for name, item in result_types.items() if isinstance(item, type)]
    classes = [
        _described(name, item) for name, item in public.items() if isinstance(item, type) and name not in result_types
    ]
    typed = [_described(name, item, signature=False) for name, item in returned]
    parts = [API_HEAD, "## Functions", *functions, "## Classes", *classes, PRODUCTS_TEXT, *typed]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def files() -> dict[str, str]:
    """Return every generated file by its path in the repository."""
    reference = "\n\n".join(part.strip() for part in (HEAD, command_line(), configuration(), features(), layouts()))
    return {
        "docs/api.md": api(),
        "docs/reference.md": reference + "\n",
        "docs/run-directory.md": run_directory(),
        "docs/config.schema.json": json.dumps(schema(), indent=1) + "\n",
        "docs/inspection.schema.json": json.dumps(inspection_schema(), indent=1) + "\n",
        "docs/results.schema.json": json.dumps(results_schema(), indent=1) + "\n",
    }


def main() -> None:
    """Write them."""
    for name, text in files().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
