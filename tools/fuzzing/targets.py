"""What is done with a mutated input, and what must hold of every result.

A result is accepted where nothing contradicts it: events counted are those processed, values are finite and physical,
what a checksum covers is unchanged. Anything else than a result or a :class:`~drapes_hep.errors.DrapesError` of one
printable line is a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import yaml

from drapes_hep.errors import DrapesError
from tools.fuzzing.bases import BASES, UnwritableError, build
from tools.fuzzing.mutations import BYTES, Mutation, mutate_bytes, mutate_table, mutate_text, mutate_tree

__all__ = ["TARGETS", "Outcome", "execute", "list_bases", "prepare"]

ROOT = Path(__file__).resolve().parents[2]
FILES = tuple(BASES)
TARGETS = (*FILES, "config", "assign", "run", "model", "checkpoint")
"""Everything that is fuzzed: kinds of files, the configuration, what a run directory holds."""


class Recipe(NamedTuple):
    """An input that can be built again."""

    target: str
    base: str
    mutations: Sequence[Mutation]


@dataclass(frozen=True)
class Outcome:
    """What an input led to.

    Attributes
    ----------
    kind : {"result", "changed", "refused", "skipped", "failure"}
        ``changed`` is a result with other values than those of the base, although only bytes were changed.
    text : str
        The message, or the traceback of a failure.
    signature : str
        Failures of the same signature count as one.
    """

    kind: str
    text: str = ""
    signature: str = ""


class BrokenInvariantError(AssertionError):
    """A result that cannot be right."""


def require(holds: object, what: str) -> None:
    """Raise :class:`BrokenInvariantError` unless something holds of a result."""
    if not holds:
        raise BrokenInvariantError(what)


def execute(recipe: Mapping[str, Any], folder: Path) -> Outcome:
    """Build the input of a recipe and read it.

    Parameters
    ----------
    recipe : mapping
        ``{"target", "base", "mutations"}``.
    folder : Path
        Where files may be written.

    Returns
    -------
    Outcome
    """
    folder.mkdir(parents=True, exist_ok=True)
    parsed = Recipe(recipe["target"], recipe["base"], recipe["mutations"])
    action = _ACTIONS[parsed.target]
    try:
        digest = action(parsed, folder)
    except UnwritableError as error:
        return Outcome("skipped", str(error))
    except DrapesError as error:
        return _judge(str(error))
    except Exception as error:
        return Outcome("failure", traceback.format_exc(), _signature(error))
    if digest is None or any(name not in BYTES for name, *_ in parsed.mutations):
        return Outcome("result")
    unchanged = action(parsed._replace(mutations=[]), folder)
    if digest == unchanged:
        return Outcome("result")
    if parsed.target == "parquet" and not _has_valid_checksums(build(*parsed, folder)):
        return Outcome("failure", "values that contradict the file's checksums were read", "checksum: not compared")
    return Outcome("changed")


def _has_valid_checksums(path: Path) -> bool:
    """Whether the pages of a Parquet file are those that its checksums, if it has any, were computed of."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            file.read()
    except OSError:
        return False
    return True


def _judge(text: str) -> Outcome:
    if "\n" in text or not text.strip() or len(text) > 1200:
        return Outcome("failure", text, "message: not one line")
    if not text.isprintable():
        return Outcome("failure", repr(text), "message: control characters")
    return Outcome("refused", text)


def _signature(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/drapes_hep/" in frame.filename] or frames
    place = own[-1]
    where = f"{Path(place.filename).name}:{place.name}"
    what = str(error) if isinstance(error, BrokenInvariantError) else ""
    return f"{type(error).__name__} {what}in {where}" if what == "" else f"{type(error).__name__}: {what}"


# ---- files of events -------------------------------------------------------------------------------------------------


def check_events(events: Any) -> dict[str, Any]:
    """Check what every chunk of events must hold, and return how many there are with a digest of their values."""
    ids, weight = (ak.to_numpy(events[name]) for name in ("event_id", "weight"))
    require(len(ids) == len(events), "lengths of columns")
    require((ids >= 0).all(), "negative identity")
    require(np.isfinite(weight).all(), "weight not finite")
    digest = hashlib.sha256(ids.tobytes() + weight.tobytes())
    jets = events.jets
    counts = ak.to_numpy(ak.num(jets))
    require(len(counts) == len(events), "lengths of lists")
    digest.update(counts.tobytes())
    flat = {name: ak.to_numpy(ak.flatten(jets[name])) for name in ("pt", "eta", "phi", "mass", "tau1", "tau2", "tau3")}
    for name, values in flat.items():
        require(np.isfinite(values).all(), f"{name} not finite")
        digest.update(np.ascontiguousarray(values).tobytes())
    require((flat["pt"] > 0).all() and (flat["mass"] >= 0).all(), "pt or mass not physical")
    require((np.abs(flat["eta"]) <= 20).all(), "eta not physical")
    require(all((flat[f"tau{n}"] >= 0).all() for n in (1, 2, 3)), "tau not physical")
    if "label" in events.fields:
        label = ak.to_numpy(events.label)
        require(np.isin(label, (0, 1)).all(), "label neither 0 nor 1")
        digest.update(label.tobytes())
    if "constituents" in jets.fields:
        inner = ak.to_numpy(ak.flatten(jets.constituents.pt, axis=None))
        require(np.isfinite(inner).all() and (inner > 0).all(), "constituents not physical")
        digest.update(inner.tobytes())
    return {"events": len(events), "digest": {digest.hexdigest()}}


def read_events(path: Path, chunksize: int, constituents: bool) -> str:
    """Scan, inspect and read a file; return a digest of its values."""
    from drapes_hep.data.inspection import inspect_file
    from drapes_hep.events.chunks import Reading
    from drapes_hep.events.processing import run
    from drapes_hep.events.readers import scan

    reading = Reading(constituents=constituents)
    info = scan(path, reading=reading)
    record = inspect_file(path, None, reading, None).to_json()
    require(record["events"] == info.entries, "inspect counts other events")
    json.dumps(record, allow_nan=False)
    output, report = run({"data": str(path)}, check_events, chunksize=chunksize, reading=reading)
    require(report.requested == report.processed == info.entries == output["events"], "events lost")
    return content(sorted(output["digest"]))


def content(value: object) -> str:
    """Return a digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _act_file(recipe: Recipe, folder: Path) -> str | None:
    path = build(*recipe, folder)
    if recipe.target == "truth":
        from drapes_hep.events.skims import read_truth

        truth = read_truth(path)
        require(np.isin(truth.label, (0, 1)).all(), "label neither 0 nor 1")
        require((truth.event_id[1:] > truth.event_id[:-1]).all(), "identities not ascending")
        require((truth.truth_for(truth.event_id) == truth.label).all(), "labels of other events")
        return content([truth.event_id.tolist(), truth.label.tolist()])
    # by the recipe alone, so that it replays
    chance = int(content(recipe.mutations)[:4], 16) if recipe.mutations else 0
    return read_events(
        path, (7, 25, 1000)[chance % 3] if recipe.mutations else 1000, recipe.target in {"raw", "simulated"}
    )


# ---- configuration ---------------------------------------------------------------------------------------------------


def check_configuration(config: Any) -> None:
    """Check what every accepted configuration must hold."""
    from drapes_hep.config import check_config
    from drapes_hep.errors import ConfigError
    from drapes_hep.events.features import check_classifier_features
    from drapes_hep.regions import sliding_windows

    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    again = check_config(json.loads(text), "again").model_dump(mode="json")
    require(json.dumps(again) == text, "not itself when read back")
    windows = sliding_windows(config)
    edges = np.array([[window.lo, window.hi, window.range_lo, window.range_hi] for window in windows])
    require(len(windows) > 0 and np.isfinite(edges).all(), "windows not finite")
    low, high = edges[:, 0] - edges[:, 2], edges[:, 3] - edges[:, 1]
    require((low > 0).all() and (high > 0).all() and (edges[:, 1] > edges[:, 0]).all(), "windows outside the range")
    try:
        check_classifier_features(config.features, config.classifier_features, **config.definitions)
    except ConfigError as error:
        require(_judge(str(error)).kind == "refused", "message: not one line")


_LONG = {"deep": f"cwola.options={'[' * 2000}", "long": f"{'x' * 3000}"}
"""Assignments that a recipe names rather than repeats."""


def _act_config(recipe: Recipe, folder: Path) -> None:
    from drapes_hep.config import load_config

    words = [_LONG.get(mutation[1], mutation[1]) for mutation in recipe.mutations if mutation[0] == "assign"]
    text = (ROOT / "configs" / recipe.base).read_text(encoding="utf-8")
    if any(name in {"set", "remove", "key", "number"} for name, *_ in recipe.mutations):
        try:
            text = yaml.dump(mutate_tree(yaml.safe_load(text), recipe.mutations), allow_unicode=True)
        except yaml.YAMLError as error:
            raise UnwritableError(str(error)) from error
    text = mutate_text(text, recipe.mutations)
    path = folder / "config.yaml"
    path.write_bytes(mutate_bytes(text.encode("utf-8", "surrogatepass"), recipe.mutations))
    check_configuration(load_config(path, words))


# ---- run directories -------------------------------------------------------------------------------------------------

SEARCH = {
    "name": "small",
    "data": {"path": "events.root", "labels": True},
    "signal": {"inject": 100, "seed": 1},
    "windows": {"width": 400, "step": 400, "first": 3300, "last": 3300},
    "template": {"oversample": 1.5, "steps": 4},
    "training": {"epochs": 2, "batch": 512, "width": 8, "depth": 1, "pseudo_window": "none"},
    "cwola": {"ensemble": 1, "folds": 2, "classifier": "mlp"},
    "hunt": {"background_efficiencies": [1, 0.1], "toys": 20},
    "blind": False,
}
"""A search of seconds."""


def prepare(folder: Path) -> None:
    """Make a finished run, once.

    Parameters
    ----------
    folder : Path
        Shared by the workers.
    """
    import uproot

    from drapes_hep.events.formats.writers import write_feature_root
    from drapes_hep.events.skims import read_truth

    if (folder / "ready").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with uproot.open(ROOT / "configs" / "data" / "quickstart.root") as file:
        columns = file["events"].arrays(library="np")
    label = read_truth(ROOT / "configs" / "data" / "quickstart.truth.parquet").truth_for(columns.pop("event_id"))
    rows = np.sort(np.concatenate([np.flatnonzero(label == 0)[:3000], np.flatnonzero(label == 1)[:100]]))
    write_feature_root(folder / "events.root", {**{n: v[rows] for n, v in columns.items()}, "label": label[rows]})
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    _search(folder / "run", folder)
    _report(folder / "run", whole=True)
    (folder / "ready").touch()


def _search(run: Path, project: Path) -> None:
    from drapes_hep.config import load_config
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.run_directory import open_run
    from drapes_hep.stages.classify import classify
    from drapes_hep.stages.generate import generate
    from drapes_hep.stages.hunt import hunt
    from drapes_hep.stages.skim import skim
    from drapes_hep.stages.train import train

    context = Context.of(load_config(project / "search.yaml"), open_run(run), device="cpu", workers=1)
    skim(context)
    for window in context.windows:
        train(context, window)
        generate(context, window)
        classify(context, window)
    hunt(context)


def _report(run: Path, whole: bool) -> None:
    from unittest.mock import patch

    from drapes_hep.pipeline.run_directory import open_run
    from drapes_hep.report import page
    from drapes_hep.stages.report import own_configuration, report

    opened = open_run(run)
    own_configuration(opened)
    if whole:
        report(opened)
        return
    # figures take seconds: all else of the page without them
    figures = ("control_figures", "quality_figures", "metric_figures", "split_figures", "scan_figures")
    without = {name: lambda *_: [] for name in figures} | {"window_figures": lambda *_: ([], [])}
    with patch.multiple(page, **without):
        report(opened)


class _Again(Exception):
    """Raised in the place of a stage's work."""


def _again() -> Sequence[Path]:
    raise _Again


def _list_run(project: Path) -> tuple[str, ...]:
    run = project / "run"
    files = [path for path in run.rglob("*") if path.is_file() and "report" not in path.parts]
    return tuple(sorted(str(path.relative_to(run)) for path in files))


def _mutate_file(path: Path, mutations: Sequence[Mutation]) -> None:
    """Mutate a file of a run directory by what it holds, then its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    trees = any(name in {"set", "remove", "key", "number"} for name, *_ in mutations)
    try:
        if path.suffix == ".json" and trees:
            tree = mutate_tree(json.loads(path.read_text(encoding="utf-8")), mutations)
            path.write_text(json.dumps(tree, skipkeys=True), encoding="utf-8", errors="surrogatepass")
        elif path.suffix == ".safetensors" and trees:
            data = path.read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            header = json.dumps(mutate_tree(json.loads(data[8 : 8 + length]), mutations)).encode()
            path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
        elif path.suffix == ".parquet":
            original = pq.read_table(path)
            columns = {
                n: original[n].to_numpy() if n != "jets" else original[n].to_pylist() for n in original.column_names
            }
            changed = mutate_table(columns, mutations)
            if not all(changed.get(name) is values for name, values in columns.items()):
                table = pa.table({n: pa.array(v) for n, v in changed.items()})
                pq.write_table(table.replace_schema_metadata(original.schema.metadata), path)
    except Exception as error:  # a mutation that cannot be written
        raise UnwritableError(str(error)) from error
    path.write_bytes(mutate_bytes(path.read_bytes(), mutations))


def _act_run(recipe: Recipe, folder: Path) -> None:
    from unittest.mock import patch

    from drapes_hep.pipeline import execution as stamps
    from drapes_hep.stages import classify, generate, hunt, skim, train

    project, run = folder / "project", folder / "run"
    prepare(project)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(project / "run", run)
    _mutate_file(run / recipe.base, recipe.mutations)
    refused: list[DrapesError] = []

    def without_work(directory: Any, stage: Any, work: Any, reporter: Any) -> bool:  # noqa: ARG001
        return stamps.run_stage(directory, stage, _again, reporter)

    patches = [patch.object(module, "run_stage", without_work) for module in (skim, train, generate, classify, hunt)]
    actions: tuple[Callable[[], None], ...] = (
        lambda: _report(run, whole=int(content(list(recipe.mutations))[:4], 16) % 16 == 0),
        lambda: _read_tables(run),
        lambda: _hunt_again(run, project),
    )
    for action in actions:
        try:
            action()
        except DrapesError as error:
            refused.append(error)
    for replacement in patches:
        replacement.start()
    try:
        _search(run, project)
    except _Again:
        pass
    except DrapesError as error:
        refused.append(error)
    finally:
        for replacement in patches:
            replacement.stop()
    for error in refused:
        require(_judge(str(error)).kind == "refused", "message: not one printable line")
    if refused:
        raise refused[0]


def _hunt_again(run: Path, project: Path) -> None:
    """Run the hunt on what lies there: it refuses inputs that have changed, and takes the others."""
    (run / "stages" / "hunt.json").unlink(missing_ok=True)
    _search_hunt(run, project)


def _search_hunt(run: Path, project: Path) -> None:
    from drapes_hep.config import load_config
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.run_directory import open_run
    from drapes_hep.stages.hunt import hunt

    hunt(Context.of(load_config(project / "search.yaml"), open_run(run), device="cpu", workers=1))


def _read_tables(run: Path) -> None:
    """Read the tables and models of a run directory as a user's own script would."""
    from drapes_hep.events.readers import scan
    from drapes_hep.events.skims import read_skim, read_truth
    from drapes_hep.templates.feature_model import load_background_model

    for path in sorted(run.rglob("*.parquet")):
        if path.name == "truth.parquet":
            read_truth(path)
        else:
            read_skim(path)
    scan(run / "skim" / "events.parquet")
    for card in sorted(run.rglob("card.json")):
        load_background_model(card.parent)


def _denoiser() -> Any:
    from drapes_hep.diffusion.denoisers import EDMDenoiser
    from drapes_hep.networks.mlp import ResidualMLP

    return EDMDenoiser(ResidualMLP(2, 1, width=8, depth=1, embedding=4, seed=1))


def _act_model(recipe: Recipe, folder: Path) -> str:
    import torch

    from drapes_hep.diffusion.checkpoints import load_model, save_model

    original, copy = _denoiser(), folder / "model"
    save_model(copy, original, {"seed": 1})
    _mutate_file(copy / recipe.base, recipe.mutations)
    denoiser, _ = load_model(copy)
    state = denoiser.state_dict()
    if recipe.base == "model.safetensors":
        same = all(torch.equal(value, state[name]) for name, value in original.state_dict().items())
        require(same, "weights other than those of the card")
    return content({name: value.numpy().tobytes().hex() for name, value in sorted(state.items())})


def _train(checkpoint: Path, kill: int | None = None) -> str:
    import torch

    from drapes_hep.diffusion.training import TrainingSettings, train

    class Killed(Exception):
        pass

    def stop(line: Any) -> None:
        if line.epoch == kill:
            raise Killed

    generator = torch.Generator().manual_seed(3)
    x, condition = torch.randn(96, 2, generator=generator), torch.randn(96, 1, generator=generator)
    settings = TrainingSettings(
        epochs=4, batch=32, rate=3e-3, validation_draws=1, checkpoint_seconds=0.0, patience=None
    )
    arguments = (_denoiser(), x[:64], condition[:64], None, x[64:], condition[64:], None, settings)
    try:
        result = train(*arguments, seed=5, checkpoint=checkpoint, progress=stop)
    except Killed:
        return ""
    losses = [line.validation_loss for line in result.history]
    require(all(map(math.isfinite, losses)) and len(losses) == 4, "losses not finite")
    return content([p.detach().numpy().tobytes().hex() for p in result.denoiser.parameters()])


def _act_checkpoint(recipe: Recipe, folder: Path) -> str:
    killed, whole, copy = (folder / f"{name}.safetensors" for name in ("killed", "whole", "copy"))
    if not killed.exists():
        _train(killed, kill=2)
    shutil.copyfile(killed, copy)
    _mutate_file(copy, recipe.mutations)
    digest = _train(copy)
    # a finished training is not repeated
    require(digest == _train(whole), "another training resumed from a damaged checkpoint")
    return digest


def list_bases(target: str, folder: Path) -> tuple[str, ...]:
    """List what a target's recipes start from.

    Parameters
    ----------
    target : str
        One of :data:`TARGETS`.
    folder : Path
        As for :func:`execute`.

    Returns
    -------
    tuple of str
    """
    if target in BASES:
        return BASES[target]
    if target in {"config", "assign"}:
        return tuple(sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
    if target == "model":
        return ("card.json", "model.safetensors")
    if target == "checkpoint":
        return ("killed.safetensors",)
    prepare(folder / "project")
    return _list_run(folder / "project")


_ACTIONS: Mapping[str, Callable[[Recipe, Path], str | None]] = {
    **dict.fromkeys(FILES, _act_file),
    "config": _act_config,
    "assign": _act_config,
    "run": _act_run,
    "model": _act_model,
    "checkpoint": _act_checkpoint,
}
