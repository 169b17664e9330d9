"""Stamps: which stages are done, what they depend on, and whether their inputs are unchanged.

A stage is done if its stamp holds the key that would be computed now, from its part of the configuration, the hashes of
what it reads and of the code that it imports, if the files that a user's code opened are as they were, and if
everything it wrote is still there. A stage that was killed left no stamp. The manifest's configuration and costs are
written by the stages that stand for them, never by a stage that was not run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drapes_hep.caller import another_output, command, option
from drapes_hep.errors import DrapesError, RunDirectoryError, counted
from drapes_hep.files import content_hash, read_json, write_json
from drapes_hep.guard import enter
from drapes_hep.keys import Difference, differences, first_difference, part_of, put_part, value_text
from drapes_hep.pipeline.code_keys import code_hash, module_hashes
from drapes_hep.pipeline.provenance import makers
from drapes_hep.pipeline.run_directory import RunDirectory, begin_manifest, update_manifest
from drapes_hep.pipeline.stage import STAMP_VERSION, Stage, Written, input_hash, last_record, read_stamp, verb_of
from drapes_hep.progress import Cost, Reporter, measured
from drapes_hep.remote import is_url
from drapes_hep.user_files import changed

__all__ = [
    "check_current",
    "check_overwrite",
    "check_stage",
    "mixed_modules",
    "run_stage",
    "run_stages",
]

_COSTS = ("finished", "seconds", "peak_memory_mib")
_MAKERS = ("code", "git", "versions", "platform")


def _cost_record(cost: Cost) -> dict[str, Any]:
    """Return when and by what a stage was run, and what it took."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(cost.seconds, 3),
        "peak_memory_mib": round(cost.peak_memory / 2**20, 1),
        **makers(),
    }


def _broken(run: RunDirectory, stamp: Mapping[str, Any]) -> Path | None:
    """Name a file that is gone, or of another size than the stage left it."""
    sizes: Mapping[str, int] = stamp["files"]
    return next((p for n, s in sizes.items() if not (p := run.path / n).is_file() or p.stat().st_size != s), None)


def _place(run: RunDirectory, path: str | Path) -> str:
    if is_url(path):
        return str(path)
    path = Path(path)
    return str(path.relative_to(run.path)) if path.is_relative_to(run.path) else str(path)


def _outside(place: str) -> bool:
    """Whether a name in a stamp is that of a user's file, not of one of the run directory."""
    return is_url(place) or Path(place).is_absolute()


def _inside(run: RunDirectory, stamp: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Return the files of the run directory that a stage read, with their hashes then."""
    return ((run.path / place, then) for place, then in stamp["reads"].items() if not _outside(place))


def _check_earlier(run: RunDirectory, stage: Stage) -> None:
    """Refuse to build on anything but what the earlier stages would make of the present configuration.

    Raises
    ------
    RunDirectoryError
        With the stage, the first difference, and what to do.
    """
    checked: set[str] = set()

    def check(later: Stage) -> None:
        for earlier in later.after:
            if earlier.name not in checked:
                checked.add(earlier.name)
                check(earlier)
                _check_done(run, earlier, stage.name)

    check(stage)


def _check_done(run: RunDirectory, stage: Stage, wanted_by: str) -> None:
    stamp = read_stamp(run, stage.name)
    if stamp is None:
        raise RunDirectoryError(
            f"{run.path}: {stage.name} is not done, {wanted_by} needs it; run {command(stage.verb)} first"
        )
    again = f"run {command(stage.verb)} again, or use {another_output()}"
    if stamp["version"] != STAMP_VERSION:
        raise RunDirectoryError(f"{run.path}: the stamp of {stage.name} is from an older release; {again}")
    difference = _difference(stage, stamp) or _renamed(run, stage, stamp)
    if difference is not None:
        key, was, now = difference
        if _is_source(key):
            raise RunDirectoryError(
                f"{run.path}: {_describe_source(key)} has changed since {stage.name} was run; {again}"
            )
        raise RunDirectoryError(
            f"{run.path}: {stage.name} was run with {key} {value_text(was)}, the configuration has {value_text(now)};"
            f" run {command(stage.verb)} again with {option('overwrite')}, or use {another_output()}"
        )
    modules = _other_code(stage, stamp)
    if modules:
        raise RunDirectoryError(f"{run.path}: {stage.name} was run with other code, {modules} changed since; {again}")
    broken = _broken(run, stamp)
    if broken is not None:
        raise RunDirectoryError(f"{broken}: missing or changed since {stage.name} was run; {again}")
    for file in changed(stamp["opened"]):
        raise RunDirectoryError(f"{file}: changed since the processor read it in {stage.name}; {again}")
    for path, then in _inside(run, stamp):
        if not path.is_file() or input_hash(path) != then:
            raise RunDirectoryError(f"{path}: missing or changed since {stage.name} read it; {again}")


def _difference(stage: Stage, stamp: Mapping[str, Any]) -> Difference | None:
    """Return the first difference between what decided a finished stage and what decides it now."""
    decides = stage.decides()
    pairs = ((stamp[name], decides[name]) for name in ("config", "other"))
    return next(
        (_as_configured(stage, stamp, difference) for was, now in pairs for difference in differences(was, now)), None
    )


def _as_configured(stage: Stage, stamp: Mapping[str, Any], difference: Difference) -> Difference:
    """Name the key of the configuration whose meaning has changed, if that spells it otherwise now."""
    key = difference[0].partition("'s ")[0]
    then, now = (part.get(key) for part in (stamp["recorded"], part_of(stage.config, stage.recorded)))
    return difference if "'s " not in difference[0] or then == now else (key, then, now)


def _other_code(stage: Stage, stamp: Mapping[str, Any]) -> str:
    """Name the modules that are not what they were, with a verb; nothing if all are."""
    now, then = module_hashes(stage.code), stamp["modules"]
    names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if not names:
        return ""
    text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{text} {'was' if len(names) == 1 else 'were'}"


def _is_source(key: str) -> bool:
    """Whether a difference is one of a user's code or its files, edited in place: no other configuration."""
    return key.partition(".")[0].endswith(("'s source", "'s files"))


def _describe_source(key: str) -> str:
    """Describe a difference in a user's code or its files."""
    whose, _, file = key.partition(".")
    reader = whose.partition("'")[0]
    return f"{file}, which the {reader} reads," if file else f"the {whose}"


_ALL_THE_SAME = {"blind", "hidden windows"}
"""What changes no event, model or score: only what a run shows of them."""


def check_stage(run: RunDirectory, stage: Stage, wanted_by: str) -> None:
    """Refuse what a stage left unless the present configuration and code would make the same of it and all before it.

    Parameters
    ----------
    run : RunDirectory
    stage : Stage
    wanted_by : str
        What needs it, for the message.

    Raises
    ------
    RunDirectoryError
        With the stage, the first difference, and what to do.
    """
    check_current(run, stage.name)
    _check_earlier(run, stage)
    _check_done(run, stage, wanted_by)


def check_overwrite(run: RunDirectory, stage: Stage, *, inputs: bool = False) -> None:
    """Refuse to replace what a stage made of another configuration, unless ``run.overwrite`` allows it.

    A stage that was interrupted counts as well, since it left a checkpoint or files.

    Code that was edited, the package's or a user's, is no other configuration; neither is a search that is unblinded,
    nor another hunt, which is remade of what the other stages left.

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
    stamp = last_record(run, stage.name)
    if run.overwrite or stamp is None or stage.cheap:
        return
    difference = _other_configuration(run, stage, stamp) or (_renamed(run, stage, stamp) if inputs else None)
    if difference is not None:
        key, was, now = difference
        raise RunDirectoryError(
            f"{run.path}: contains {stage.name} run with {key} {value_text(was)}, the configuration has"
            f" {value_text(now)}; name {another_output()}, or replace it with {option('overwrite')}"
        )


def _other_configuration(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any]) -> Difference | None:
    """Return the first difference that is one of configurations."""
    decides = stage.decides()
    for was, now in ((stamp[name], decides[name]) for name in ("config", "other")):
        # a key that only one of the two has is a key of other code
        shared = [key for key in now if key in was and key not in _ALL_THE_SAME]
        for changed_key in differences({key: was[key] for key in shared}, {key: now[key] for key in shared}):
            difference = _as_configured(stage, stamp, changed_key)
            section, _, name = changed_key[0].partition(".")
            if _is_source(difference[0]) or (isinstance(was.get(section), dict) and name and name not in was[section]):
                continue
            return _cause(run, stage, difference)
    return None


_PLACES = {"data": ("path", "truth"), "template": ("source",)}
"""Keys for the location of the events."""


def _renamed(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any]) -> Difference | None:
    """Return the first key that names other files than it did, if these do not hold the same bytes."""

    def places(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {key: part[name][key] for key in keys if key in part[name]}
            for name, keys in _PLACES.items()
            if isinstance(part.get(name), dict)
        }

    difference = first_difference(places(stamp["recorded"]), places(part_of(stage.config, stage.recorded)))
    return None if difference is None or _same_inputs(run, stage, stamp) else difference


def _cause(run: RunDirectory, stage: Stage, difference: Difference) -> Difference:
    """Name the key of the configuration behind a difference in what is derived from it, such as the mass bins."""
    if difference[0].partition(".")[0] in stage.config:
        return difference
    before = read_json(run.manifest).get("config") or {}
    sections = [name for name in ("mass", "windows", "training") if isinstance(before.get(name), dict)]
    now = {name: stage.config[name] for name in sections}
    return first_difference({name: before[name] for name in sections}, now) or difference


def _same_inputs(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any]) -> bool:
    """Whether the user's files hold the same bytes, whatever their new places."""
    then = sorted(digest for place, digest in stamp["reads"].items() if _outside(place))
    outside = [path for path in stage.reads() if is_url(path) or not Path(path).is_relative_to(run.path)]
    return all(is_url(path) or Path(path).is_file() for path in outside) and sorted(map(input_hash, outside)) == then


def check_current(run: RunDirectory, name: str) -> None:
    """Refuse results that are out of date, since an earlier stage was run again.

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
    pending, checked = [name], {name}
    while pending:
        stage = pending.pop()
        verb, stamp = verb_of(stage), stamps.get(stage)
        if stamp is None:
            raise RunDirectoryError(f"{run.path}: {stage} is not done; run {command(verb)} first")
        for path, then in _inside(run, stamp):
            if path.is_file() and input_hash(path) != then:
                raise RunDirectoryError(
                    f"{path}: changed since {stage} read it; repeat the later stages ({command('run')} runs all)"
                )
            earlier = maker.get(path)
            if earlier is not None and earlier not in checked:
                checked.add(earlier)
                pending.append(earlier)


def mixed_modules(run: RunDirectory, stages: Sequence[str]) -> tuple[str, ...]:
    """Return the modules of the package that were not the same when different stages were run."""
    stamps = [stamp for name in stages if (stamp := read_stamp(run, name)) is not None]
    states = {(module, state) for stamp in stamps for module, state in stamp["modules"].items()}
    modules = [module for module, _ in states]
    return tuple(sorted({module for module in modules if modules.count(module) > 1}))


def run_stage(
    run: RunDirectory, stage: Stage, work: Callable[[], Sequence[Path] | Written], reporter: Reporter
) -> bool:
    """Run a stage unless it is done.

    Parameters
    ----------
    run : RunDirectory
    stage : Stage
    work : callable
        Does it and returns the files that it wrote.
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
    return bool(run_stages(run, [stage], lambda _: [work()], reporter))


def run_stages(
    run: RunDirectory,
    stages: Sequence[Stage],
    work: Callable[[Sequence[int]], Sequence[Sequence[Path] | Written]],
    reporter: Reporter,
) -> list[int]:
    """Run stages whose work is done together, those that are not done.

    Parameters
    ----------
    run : RunDirectory
    stages : sequence of Stage
        None of them reads what another writes.
    work : callable
        From the places of the stages that have to run, at least one, to the files that each of them wrote.
    reporter : Reporter

    Returns
    -------
    list of int
        Places of those that had to run. The time of each is an equal share, its memory that of all.

    Raises
    ------
    RunDirectoryError
        As for :func:`run_stage`.
    """
    due: dict[int, dict[str, Any]] = {}
    for i, stage in enumerate(stages):
        record = _record_if_due(run, stage, reporter)
        if record is not None:
            due[i] = record
    if not due:
        return []
    for i, record in due.items():
        begin_manifest(run, stages[i].config)
        # before the old stamp goes, so that one of the two is always there
        write_json(run.begun(stages[i].name), record)
        run.stamp(stages[i].name).unlink(missing_ok=True)
    first, *others = (stages[i].name for i in due)
    enter(f"{first} and {counted(len(others), 'other')}" if others else first)
    with measured() as cost:
        try:
            results = work(list(due))
        except DrapesError:
            # its configuration may be what is wrong, and is to be corrected: no reason to ask for leave
            for i in due:
                run.begun(stages[i].name).unlink(missing_ok=True)
            raise
    enter("")
    share = Cost(cost.seconds / len(due), cost.peak_memory)
    for (i, record), result in zip(due.items(), results, strict=True):
        _finish(run, stages[i], record, result if isinstance(result, Written) else Written(result), share)
        reporter.say(f"{stages[i].name}: {share.seconds:.1f} s, {share.peak_memory / 2**20:.0f} MiB")
    return list(due)


def _record_if_due(run: RunDirectory, stage: Stage, reporter: Reporter) -> dict[str, Any] | None:
    """Return what a stage's stamp will hold if it has to run; None if it is done."""
    _check_earlier(run, stage)
    reads = list(stage.reads())
    for path in reads:
        if not is_url(path) and not Path(path).exists():
            raise RunDirectoryError(f"{path}: missing, {stage.name} needs it")
    hashes = {_place(run, path): input_hash(path) for path in reads}
    decides = stage.decides()
    key = content_hash([STAMP_VERSION, stage.name, decides, code_hash(*stage.code), list(hashes.values())])
    record = {
        "version": STAMP_VERSION,
        "key": key,
        **decides,
        "recorded": part_of(stage.config, stage.recorded),
        "reads": hashes,
        "modules": dict(module_hashes(stage.code)),
        "opened": {},
    }
    stamp = read_stamp(run, stage.name)
    if stamp is not None and stamp["key"] == key and _broken(run, stamp) is None and not changed(stamp["opened"]):
        moved = stamp | record | {"opened": stamp["opened"]}
        if stamp != moved:  # the user's files have moved
            write_json(run.stamp(stage.name), moved)
        _stand_for(run, stage)
        reporter.say(f"{stage.name}: already done")
        return None
    check_overwrite(run, stage, inputs=True)
    if stamp is not None:
        reporter.say(f"{stage.name}: runs again, {_why_again(run, stage, stamp, hashes)}")
    return record


def _finish(run: RunDirectory, stage: Stage, record: Mapping[str, Any], written: Written, cost: Cost) -> None:
    """Write the stamp of a stage that has run."""
    sizes = {str(path.relative_to(run.path)): path.stat().st_size for path in written.files}
    write_json(run.stamp(stage.name), {**record, "opened": dict(written.opened), "files": sizes, **_cost_record(cost)})
    run.begun(stage.name).unlink(missing_ok=True)
    _stand_for(run, stage)


def _why_again(run: RunDirectory, stage: Stage, stamp: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Return why a finished stage is run again."""
    if stamp["version"] != STAMP_VERSION:
        return "as its stamp is from an older release"
    difference = _difference(stage, stamp)
    if difference is not None:
        key, was, now = difference
        if key == "hidden windows":
            return f"as the run is {'blinded' if now else 'unblinded'}, or its windows have changed"
        if _is_source(key):
            return f"as {_describe_source(key)} has changed"
        return f"as {key} was changed from {value_text(was)} to {value_text(now)}"
    modules = _other_code(stage, stamp)
    if modules:
        return f"as {modules} changed"
    if list(stamp["reads"].values()) != list(hashes.values()):
        others = [place for place, digest in hashes.items() if stamp["reads"].get(place) != digest]
        return f"as {others[0] if others else 'one of the files that it reads'} has changed"
    for path in changed(stamp["opened"]):
        return f"as {path}, which the processor reads, has changed"
    return f"as {_broken(run, stamp) or 'its stamp'} is missing or was changed"


def _stand_for(run: RunDirectory, stage: Stage) -> None:
    """Put a finished stage's part of the configuration, and all stages' costs and makers, into the manifest."""

    def entries(manifest: Mapping[str, Any]) -> dict[str, Any]:
        config = json.loads(json.dumps(manifest.get("config") or {}))
        put_part(config, stage.config, (*stage.recorded, *stage.keys))
        # from the stamps of all stages: a line that a job on another machine has missed comes back
        stages = dict(manifest.get("stages") or {})
        for name in _in_order(run):
            stamp = read_stamp(run, name)
            if stamp is not None:
                stages[name] = {entry: stamp.get(entry) for entry in (*_COSTS, *_MAKERS)}
        return {"name": config.get("name"), "config": config, "stages": stages}

    update_manifest(run, entries)


def _in_order(run: RunDirectory) -> list[str]:
    """Return the stages that have a stamp, in the order in which these were written."""
    times: list[tuple[int, str]] = []
    for path in (run.path / "stages").glob("*.json"):
        with suppress(FileNotFoundError):  # another process runs this stage again
            times.append((path.stat().st_mtime_ns, path.stem))
    return [name for _, name in sorted(times)]
