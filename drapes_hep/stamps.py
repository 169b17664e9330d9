"""Stamps: which stage is done, what decided its result, and whether what it stands on is still what it stood on.

A stage is done if its stamp holds the key that would be computed now, from its part of the configuration, the hashes of
what it reads and of the code, and if everything it wrote is still there. A stage that was killed left no stamp. The
manifest's configuration and costs are written by the stages that stand for them, never by a stage that was not run.
"""

from __future__ import annotations

import functools
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import drapes_hep
from drapes_hep.errors import DrapesError, RunDirectoryError
from drapes_hep.files import content_hash, file_hash, read_json, write_json
from drapes_hep.guard import enter
from drapes_hep.progress import Cost, Reporter, measured
from drapes_hep.remote import fingerprint, is_url
from drapes_hep.rundir import RunDirectory, begin_manifest, note

__all__ = [
    "Stage",
    "check_current",
    "check_overwrite",
    "code_hash",
    "first_difference",
    "input_hash",
    "makers",
    "read_stamp",
    "run_stage",
    "shown",
]

_NOT_PHYSICS = {
    "plots",
    "report",
    "cli",
    "progress",
    "guard",
    "interrupts",
    "starter",
    "stages/report",
    "studies/study",
    "studies/design",
    "studies/llv",
}
"""Modules whose change cannot change a number."""


_VERBS = {"quality": "classify"}
"""Verbs of stages that have none of their own name."""


def _verb(stage: str) -> str:
    """Return what a user types to run a stage."""
    first = stage.partition(".")[0]
    return _VERBS.get(first, first)


@dataclass(frozen=True)
class Stage:
    """A stage: what decides its result, and what it stands on.

    Attributes
    ----------
    name : str
        E.g. ``train.3300-3700``; the verb that runs it comes first.
    config : mapping
        The whole configuration, as JSON values.
    keys : tuple of str
        Sections and keys of it that decide the result.
    other : mapping
        What else decides it, by the name that a message gives it: the hash of a user's source and the like.
    noted : tuple of str
        Sections and keys that it stands for in the manifest although they change no number.
    reads : callable
        Finds the files and URLs that it reads: made by earlier stages, or the user's.
    after : tuple of Stage
        The stages that it stands on.
    """

    name: str
    config: Mapping[str, Any]
    keys: tuple[str, ...]
    reads: Callable[[], Sequence[str | Path]]
    other: Mapping[str, Any] = field(default_factory=dict)
    noted: tuple[str, ...] = ()
    after: tuple[Stage, ...] = ()

    @property
    def verb(self) -> str:
        """What a user types to run it."""
        return _verb(self.name)

    def part(self, keys: Sequence[str]) -> dict[str, Any]:
        """Give a part of the configuration by section or ``section.key``."""
        return {key: functools.reduce(lambda tree, name: tree[name], key.split("."), self.config) for key in keys}


@functools.cache
def code_hash() -> str:
    """Hash of the package's source, without the modules that cannot change a number."""
    root = Path(drapes_hep.__file__).parent
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    kept = [
        path for path in files if not {path.with_suffix("").as_posix(), path.with_suffix("").parts[0]} & _NOT_PHYSICS
    ]
    return content_hash([(str(path), file_hash(root / path)) for path in kept])


@functools.cache
def _git_state() -> dict[str, Any] | None:
    root = Path(drapes_hep.__file__).resolve().parent
    if not (root.parent / ".git").exists():
        return None  # installed: whatever repository surrounds the environment is not this code's

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.SubprocessError):
        return None  # no git


def _versions() -> dict[str, str]:
    names = ("drapes-hep", "awkward", "coffea", "hist", "iminuit", "mplhep", "numpy", "scikit-learn", "torch", "uproot")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


_COSTS = ("finished", "seconds", "peak_memory_mib")
_MAKERS = ("code", "git", "versions", "platform")


def _made(cost: Cost) -> dict[str, Any]:
    """Say when and by what a stage was run, and what it took."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(cost.seconds, 3),
        "peak_memory_mib": round(cost.peak_memory / 2**20, 1),
        **makers(),
    }


def makers() -> dict[str, Any]:
    """Say what makes the numbers: the code's hash, the repository's state, versions and platform."""
    return {
        "code": code_hash(),
        "git": _git_state(),
        "versions": _versions(),
        "platform": platform.platform(),
    }


def read_stamp(run: RunDirectory, name: str) -> dict[str, Any] | None:
    """Read a stage's stamp; None where there is none, for a damaged stamp is no stamp."""
    kinds = {"key": str, **dict.fromkeys(("config", "other", "noted", "reads", "files"), dict)}
    return _read_record(run.stamp(name), kinds)


def _read_begun(run: RunDirectory, name: str) -> dict[str, Any] | None:
    """Read what decides a stage that has begun and not ended; None where there is none, or it is damaged."""
    return _read_record(run.begun(name), dict.fromkeys(("config", "other", "noted", "reads"), dict))


def _read_record(path: Path, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except RunDirectoryError:
        return None
    whole = isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items())
    return found if whole else None


def _broken(run: RunDirectory, stamp: Mapping[str, Any]) -> Path | None:
    """Name a file that is gone, or of another size than the stage left it."""
    sizes: Mapping[str, int] = stamp["files"]
    return next((p for n, s in sizes.items() if not (p := run.path / n).is_file() or p.stat().st_size != s), None)


@functools.lru_cache(4096)
def _hash_of(path: Path, *_: int) -> str:
    return file_hash(path)


def input_hash(path: str | Path) -> str:
    """Return the fingerprint of a file or URL that a stage reads; a file that did not change is hashed once."""
    if is_url(path):
        return fingerprint(path)
    path = Path(path)
    # a run asks for the same files again and again, stage by stage
    state = path.stat()
    return _hash_of(path, state.st_ino, state.st_size, state.st_mtime_ns)


def _place(run: RunDirectory, path: str | Path) -> str:
    if is_url(path):
        return str(path)
    path = Path(path)
    return str(path.relative_to(run.path)) if path.is_relative_to(run.path) else str(path)


def _outside(place: str) -> bool:
    """Tell a user's file from one of the run directory, by how a stamp names it."""
    return is_url(place) or Path(place).is_absolute()


def _inside(run: RunDirectory, stamp: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Give the files of the run directory that a stage read, with their hashes then."""
    return ((run.path / place, then) for place, then in stamp["reads"].items() if not _outside(place))


def _leaves(part: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in part.items():
        # a configuration has two levels: what lies deeper is a value
        section = isinstance(value, dict) and "." not in key
        out |= {f"{key}.{name}": one for name, one in value.items()} if section else {key: value}
    return out


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    then, present = _leaves(was), _leaves(now)
    yield from ((key, then.get(key), value) for key, value in present.items() if then.get(key) != value)
    # a section that was left out since has no keys to differ
    left_out = [key for key, value in was.items() if isinstance(value, dict) and key in now and now[key] is None]
    yield from ((key, "a section", None) for key in left_out)


def first_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key, dotted, that two parts of configurations do not share, with both values."""
    return next(_differences(was, now), None)


def shown(value: object) -> str:
    """Write a configuration's value into a line of text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"


def _plain(value: object) -> Any:  # noqa: ANN401
    return json.loads(json.dumps(value))


def _check_earlier(run: RunDirectory, stage: Stage) -> None:
    """Refuse to build on anything but what the earlier stages would make of the present configuration.

    Raises
    ------
    RunDirectoryError
        With the stage, the first difference, and what to do.
    """
    seen: set[str] = set()

    def check(later: Stage) -> None:
        for one in later.after:
            if one.name not in seen:
                seen.add(one.name)
                check(one)
                _check_done(run, one, stage.name)

    check(stage)


def _check_done(run: RunDirectory, stage: Stage, wanted_by: str) -> None:
    stamp = read_stamp(run, stage.name)
    if stamp is None:
        raise RunDirectoryError(
            f"{run.path}: {stage.name} is not done, {wanted_by} needs it; run `drapes {stage.verb}` first"
        )
    again = f"run `drapes {stage.verb}` again, or use another -o"
    found = _decides_otherwise(stage, stamp)
    noted = first_difference(stamp["noted"], stage.part(stage.noted))
    if found is None and noted is not None and not _same_inputs(run, stage, stamp):
        found = noted
    if found is not None:
        key, was, now = found
        replaced = "" if _is_source(key) else " with --overwrite"
        raise RunDirectoryError(
            f"{run.path}: {stage.name} was made with {key} {shown(was)}, the configuration says {shown(now)}; run"
            f" `drapes {stage.verb}` again{replaced}, or use another -o"
        )
    if stamp.get("code") != code_hash():
        was, now = str(stamp.get("code"))[:12], code_hash()[:12]
        raise RunDirectoryError(f"{run.path}: {stage.name} was made by other code (hash {was}, now {now}); {again}")
    broken = _broken(run, stamp)
    if broken is not None:
        raise RunDirectoryError(f"{broken}: missing or changed since {stage.name} was run; {again}")
    for path, then in _inside(run, stamp):
        if not path.is_file() or input_hash(path) != then:
            raise RunDirectoryError(f"{path}: missing or changed since {stage.name} read it; {again}")


def _decides_otherwise(stage: Stage, stamp: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first difference, with both values, between what decided a finished stage and what decides it now."""
    decides = _without_spelling(_decides(stage), stamp)
    found = first_difference(stamp["config"], decides["config"])
    return found or first_difference(stamp["other"], decides["other"])


def _decides(stage: Stage) -> dict[str, Any]:
    return {"config": stage.part(stage.keys), "other": _plain(stage.other)}


_SPELLED = {"processor": "processor's source"}
"""Keys that say where a user's code lies, and what says which code it is."""


def _without_spelling(decides: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name a user's class by itself where its source is known: the path to it decides nothing.

    With ``like``, only where that has the same class of the same source.
    """
    config = dict(decides["config"])
    for key, source in _SPELLED.items():
        if key in config and decides["other"].get(source):
            name, code = _class_name(config[key]), decides["other"][source]
            if like is None:
                config[key] = name
            elif like["other"].get(source) == code and name == _class_name(like["config"].get(key)):
                config[key] = like["config"][key]
    return {"config": config, "other": decides["other"]}


def _class_name(processor: object) -> str:
    return str(processor).rpartition(":")[2]


def _is_source(key: str) -> bool:
    """Whether a difference is one of a user's code, which is edited in place: no other configuration."""
    return key.endswith("'s source")


_CHEAP = {"hunt", "study"}
"""Verbs whose results are made anew from what the others left: of them, nothing is lost that took long."""


_ALL_THE_SAME = {"blind", "hidden windows"}
"""What changes no event, model or score: only what a run shows of them."""


def check_overwrite(run: RunDirectory, stage: Stage, *, inputs: bool = False) -> None:
    """Refuse to replace what a stage made of another configuration, unless ``run.overwrite`` allows it.

    A stage that was interrupted counts as well, for it left a checkpoint or files.

    Code that was edited, the package's or a user's, is no other configuration; neither is a search that is unblinded,
    nor another hunt, which is made anew of what the other stages left.

    Parameters
    ----------
    run : RunDirectory
    stage : Stage
    inputs : bool
        Whether to compare the bytes of the files as well, if they are named otherwise than before.

    Raises
    ------
    RunDirectoryError
        With the first key that differs, both values, and what to do.
    """
    stamp = read_stamp(run, stage.name) or _read_begun(run, stage.name)
    if run.overwrite or stamp is None or stage.verb in _CHEAP:
        return
    found = _other_configuration(run, stage, stamp)
    noted = first_difference(stamp["noted"], stage.part(stage.noted))
    if found is None and noted is not None and inputs and not _same_inputs(run, stage, stamp):
        found = noted
    if found is not None:
        key, was, now = found
        raise RunDirectoryError(
            f"{run.path}: holds {stage.name} made with {key} {shown(was)}, the configuration says {shown(now)}; name"
            " another directory with -o, or replace it with --overwrite"
        )


def _other_configuration(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first difference that is one of configurations, with both values."""
    decides = _without_spelling(_decides(stage), stamp)
    for was, now in ((stamp[name], decides[name]) for name in ("config", "other")):
        # a key that only one of the two has is a key of other code
        shared = [key for key in now if key in was and key not in _ALL_THE_SAME]
        for key, then, present in _differences({key: was[key] for key in shared}, {key: now[key] for key in shared}):
            section, _, name = key.partition(".")
            if _is_source(key) or (isinstance(was.get(section), dict) and name and name not in was[section]):
                continue
            return _cause(run, stage, (key, then, present))
    return None


def _cause(run: RunDirectory, stage: Stage, found: tuple[str, Any, Any]) -> tuple[str, Any, Any]:
    """Name the key of the configuration behind a difference in what is derived from it, such as the mass bins."""
    if found[0].partition(".")[0] in stage.config:
        return found
    before = read_json(run.manifest).get("config") or {}
    sections = [name for name in ("mass", "windows", "training") if isinstance(before.get(name), dict)]
    now = {name: stage.config[name] for name in sections}
    return first_difference({name: before[name] for name in sections}, now) or found


def _same_inputs(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any]) -> bool:
    """Say whether the user's files hold the same bytes, whatever their new places."""
    then = sorted(one for place, one in stamp["reads"].items() if _outside(place))
    outside = [path for path in stage.reads() if is_url(path) or not Path(path).is_relative_to(run.path)]
    return all(is_url(path) or Path(path).is_file() for path in outside) and sorted(map(input_hash, outside)) == then


def check_current(run: RunDirectory, name: str) -> None:
    """Refuse results that no longer belong to what lies beside them, for a stage before them was run again since.

    Parameters
    ----------
    run : RunDirectory
    name : str
        The stage whose results are wanted.

    Raises
    ------
    RunDirectoryError
        If the stage, or one that it stands on, read another file than the one that is there now. Files that were
        removed to save room are no reason.
    """
    stamps = {path.stem: read_stamp(run, path.stem) for path in sorted((run.path / "stages").glob("*.json"))}
    maker = {run.path / file: stage for stage, stamp in stamps.items() if stamp for file in stamp["files"]}
    left, seen = [name], {name}
    while left:
        stage = left.pop()
        verb, stamp = _verb(stage), stamps.get(stage)
        if stamp is None:
            raise RunDirectoryError(f"{run.path}: {stage} is not done; run `drapes {verb}` first")
        for path, then in _inside(run, stamp):
            if path.is_file() and input_hash(path) != then:
                raise RunDirectoryError(
                    f"{path}: changed since {stage} read it; repeat what follows from it (`drapes run` does all)"
                )
            earlier = maker.get(path)
            if earlier is not None and earlier not in seen:
                seen.add(earlier)
                left.append(earlier)


def run_stage(run: RunDirectory, stage: Stage, work: Callable[[], Sequence[Path]], reporter: Reporter) -> bool:
    """Run a stage unless it is done.

    Parameters
    ----------
    run : RunDirectory
    stage : Stage
    work : callable
        Does it and gives the files that it wrote.
    reporter : Reporter

    Returns
    -------
    bool
        Whether it had to run.

    Raises
    ------
    RunDirectoryError
        If an earlier stage is not done, or was done with another configuration.
    """
    _check_earlier(run, stage)
    reads = list(stage.reads())
    for path in reads:
        if not is_url(path) and not Path(path).exists():
            raise RunDirectoryError(f"{path}: missing, {stage.name} needs it")
    hashes = {_place(run, path): input_hash(path) for path in reads}
    decides = _decides(stage)
    key = content_hash([stage.name, _without_spelling(decides), code_hash(), list(hashes.values())])
    record = {"key": key, **decides, "noted": stage.part(stage.noted), "reads": hashes}
    found = read_stamp(run, stage.name)
    if found is not None and found["key"] == key and _broken(run, found) is None:
        if found != found | record:  # the user's files have moved
            write_json(run.stamp(stage.name), found | record)
        _stand_for(run, stage)
        reporter.say(f"{stage.name}: done before")
        return False
    check_overwrite(run, stage, inputs=True)
    if found is not None:
        reporter.say(f"{stage.name}: runs again, {_why_again(run, stage, found, hashes)}")
    begin_manifest(run, stage.config)
    # before the old stamp goes, so that one of the two is always there
    write_json(run.begun(stage.name), record)
    run.stamp(stage.name).unlink(missing_ok=True)
    enter(stage.name)
    with measured() as cost:
        try:
            written = work()
        except DrapesError:
            # its configuration may be what is wrong, and is to be corrected: no reason to ask for leave
            run.begun(stage.name).unlink(missing_ok=True)
            raise
    enter("")
    sizes = {str(path.relative_to(run.path)): path.stat().st_size for path in written}
    write_json(run.stamp(stage.name), {**record, "files": sizes, **_made(cost)})
    run.begun(stage.name).unlink(missing_ok=True)
    _stand_for(run, stage)
    reporter.say(f"{stage.name}: {cost.seconds:.1f} s, {cost.peak_memory / 2**20:.0f} MiB")
    return True


def _why_again(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Say why a finished stage is run again."""
    differs = _decides_otherwise(stage, stamp)
    if differs is not None:
        key, was, now = differs
        if key == "hidden windows":
            return f"as the run is {'blinded' if now else 'unblinded'}, or its windows were changed"
        return f"as {key} was changed" + ("" if _is_source(key) else f" from {shown(was)} to {shown(now)}")
    if stamp.get("code") != code_hash():
        return "as it was made by other code"
    if list(stamp["reads"].values()) != list(hashes.values()):
        changed = [place for place, one in hashes.items() if stamp["reads"].get(place) != one]
        return f"as {changed[0] if changed else 'one of the files that it reads'} has changed"
    return f"as {_broken(run, stamp) or 'its stamp'} is missing or was changed"


def _stand_for(run: RunDirectory, stage: Stage) -> None:
    """Put a finished stage's part of the configuration, and all stages' costs and makers, into the manifest."""
    manifest = read_json(run.manifest)
    config = json.loads(json.dumps(manifest.get("config") or {}))
    for key, value in stage.part((*stage.noted, *stage.keys)).items():
        *parents, last = key.split(".")
        tree = config
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[last] = value
    # from the stamps of all stages: jobs that end at the same moment may miss each other's line, the next one mends it
    stamps = sorted((run.path / "stages").glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.stem))
    stages = dict(manifest.get("stages") or {})
    for path in stamps:
        stamp = read_stamp(run, path.stem)
        if stamp is not None:
            stages[path.stem] = {name: stamp.get(name) for name in (*_COSTS, *_MAKERS)}
    changed = {"name": config.get("name"), "config": config, "stages": stages}
    if any(manifest.get(name) != value for name, value in changed.items()):
        note(run, **changed)
