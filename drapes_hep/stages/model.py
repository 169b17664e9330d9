"""Stages train and generate: the background model of a window, and the template that it gives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.cwola.folds import NO_PARENT
from drapes_hep.errors import DrapesError
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.mass import SpectrumFit, draw, fit_spectrum, spectrum_edges
from drapes_hep.regions import Window
from drapes_hep.rng import event_uniforms, stage_seed
from drapes_hep.stages.context import Context, domain, feature_matrix, load_events, unweighted
from drapes_hep.stages.skim import skim_stage
from drapes_hep.stamps import Stage, code_hash, run_stage
from drapes_hep.templates.model import (
    CLOSURE,
    TRAIN,
    VALIDATION,
    BackgroundModel,
    fit_model,
    load_background_model,
    save_background_model,
    split_sidebands,
    training_record,
)

__all__ = ["CLOSURE_COPIES", "generate", "generate_stage", "mass_edges", "pseudo_window", "train", "train_stage"]

CLOSURE_COPIES = 1
"""Template events a held-out closure event: the two are compared at equal size."""

IntArray = npt.NDArray[np.int64]


def mass_edges(context: Context) -> npt.NDArray[np.float64]:
    """Give the bins of the search, GeV."""
    config = context.config
    return spectrum_edges(config.mass.range, config.mass.bin_width, context.windows)


def pseudo_window(context: Context, window: Window) -> tuple[float, float] | None:
    """Give the pseudo-window of a window: as wide, in the nearest place with sidebands around, or None.

    It lies half a width above the window, or below where the range ends.
    """
    which = context.config.training.pseudo_window
    if which == "none" or (which == "one" and window != context.windows[len(context.windows) // 2]):
        return None
    width = window.hi - window.lo
    above = (window.hi + 0.5 * width, window.hi + 1.5 * width)
    below = (window.lo - 1.5 * width, window.lo - 0.5 * width)
    if above[1] + 0.5 * width <= window.range_hi:
        return above
    return below if below[0] - 0.5 * width >= window.range_lo else None


def train_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's model."""
    return Stage(
        f"train.{window.name}",
        context.config.model_dump(mode="json"),
        ("training", "features", "seed", "template.scaling", "mass.range"),
        lambda: [context.run.events],
        other={"pseudo-window": pseudo_window(context, window)},
        after=(skim_stage(context),),
    )


def train(context: Context, window: Window) -> None:
    """Train the model of a window on its sidebands, unless it is done.

    Raises
    ------
    DrapesError
        If the skim is missing or the sidebands hold too few events.
    """
    run_stage(context.run, train_stage(context, window), lambda: _train(context, window), context.reporter)


def _train(context: Context, window: Window) -> list[Path]:
    config, folder = context.config, context.run.window(window)
    events = load_events(context.run.events, config.features)
    # a skim may be weighted: it can serve others. Better refused before a training than after it
    unweighted(events["weight"], "the selected events")
    chosen = window.in_sidebands(events["mjj"])
    if not chosen.any():
        raise DrapesError(f"window {window.name}: its sidebands hold no event; see mass.range and the selection")
    x = feature_matrix(events, config.features)[chosen]
    ids, mjj, weight = (np.asarray(events[name])[chosen] for name in ("event_id", "mjj", "weight"))
    part = split_sidebands(ids, config.seed, config.training)
    hidden = [(window.lo, window.hi)]
    _fit(context, window, folder / "model", "training.json", x, mjj, weight, part, hidden)
    written = [folder / "model" / "model.safetensors", folder / "model" / "card.json", folder / "training.json"]
    write_skim(folder / "split.parquet", {"event_id": ids, "part": part.astype(np.int8)})
    written.append(folder / "split.parquet")
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        outside = (mjj < pseudo[0]) | (mjj >= pseudo[1])
        arrays = (x[outside], mjj[outside], weight[outside], part[outside])
        _fit(context, window, folder / "pseudo_model", "pseudo_training.json", *arrays, [*hidden, pseudo])
        written += [folder / "pseudo_model" / "model.safetensors", folder / "pseudo_model" / "card.json"]
        written.append(folder / "pseudo_training.json")
    return written


def _fit(
    context: Context,
    window: Window,
    folder: Path,
    record: str,
    x: npt.NDArray[np.float64],
    mjj: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
    part: IntArray,
    hidden: list[tuple[float, float]],
) -> None:
    config = context.config
    # named by all that the training depends on: a killed run goes on, a changed one starts afresh
    settings = config.model_dump(mode="json", include={"training", "features", "seed", "template"})
    key = content_hash([settings, hidden, file_hash(context.run.events), code_hash()])
    checkpoint = folder.parent / f"{folder.name}.{key[:12]}.checkpoint"
    with context.reporter.bar(f"train {window.name}", config.training.epochs) as bar:
        model, result = fit_model(
            x,
            mjj,
            weight,
            part,
            features=config.features,
            domain=domain(config.features),
            hidden=hidden,
            training=config.training,
            scaling=config.template.scaling,
            seed=stage_seed(config.seed, folder.name, window.name),
            device=context.device,
            checkpoint=checkpoint,
            progress=lambda epoch: bar(epoch.epoch),
        )
    counts = {name: int((part == value).sum()) for name, value in _PARTS.items()}
    extra = {
        "window": [window.lo, window.hi],
        "seed": config.seed,
        "events_sha256": file_hash(context.run.events),
        "events": counts,
    }
    save_background_model(folder, model, extra)
    write_json(folder.parent / record, {**training_record(result), "events": counts})
    for old in folder.parent.glob(f"{folder.name}.*.checkpoint"):
        old.unlink()


_PARTS = {"train": TRAIN, "validation": VALIDATION, "closure": CLOSURE}


def generate_stage(context: Context, window: Window) -> Stage:
    """Describe the stage: what decides a window's template."""
    folder, pseudo = context.run.window(window), pseudo_window(context, window)
    models = ["model"] if pseudo is None else ["model", "pseudo_model"]
    reads = [context.run.events, folder / "split.parquet"]
    reads += [folder / model / name for model in models for name in ("card.json", "model.safetensors")]
    return Stage(
        f"generate.{window.name}",
        context.config.model_dump(mode="json"),
        ("template", "features", "mass", "seed"),
        lambda: reads,
        other={"pseudo-window": pseudo, "mass bins": mass_edges(context).tolist()},
        after=(train_stage(context, window),),
    )


def generate(context: Context, window: Window) -> None:
    """Generate a window's template, and the closure samples, unless it is done.

    Raises
    ------
    DrapesError
        If the model is missing, or the mass fit cannot be done.
    """
    run_stage(context.run, generate_stage(context, window), lambda: _generate(context, window), context.reporter)


def _new_ids(name: str, count: int) -> IntArray:
    # as for files (drapes_hep.events.chunks): a 31-bit key in front, so that no two samples share identities
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1
    return (np.int64(key) << np.int64(32)) | np.arange(count, dtype=np.int64)


def _generate(context: Context, window: Window) -> list[Path]:
    config, folder = context.config, context.run.window(window)
    events = load_events(context.run.events, config.features)
    mjj = np.asarray(events["mjj"])
    weight = np.asarray(events["weight"])
    edges = mass_edges(context)
    counts = np.histogram(mjj, edges, weights=weight)[0]
    variance = np.histogram(mjj, edges, weights=weight**2)[0]
    shape = (config.mass.fit, config.mass.sqrt_s)
    fit = fit_spectrum(counts, edges, (window.lo, window.hi), *shape, variance=variance)
    if not fit.good:
        context.reporter.say(
            f"window {window.name}: the mass fit is poor (2NLLR {fit.chi2:.1f} for {fit.ndof}), "
            "its template's masses and significance are not to be trusted"
        )
    split = read_skim(folder / "split.parquet", ("event_id", "part"))
    model = load_background_model(folder / "model", window, context.device)
    written = [folder / "template.parquet", folder / "closure.parquet"]
    size = round(config.template.oversample * int(window.in_signal_region(mjj).sum()))
    if size == 0:
        raise DrapesError(f"window {window.name}: holds no event, so there is nothing to compare a template with")
    _write_sample(context, window, model, written[0], *_drawn(context, fit, (window.lo, window.hi), size, "template"))
    closing = np.isin(events["event_id"], np.asarray(split["event_id"])[np.asarray(split["part"]) == CLOSURE])
    masses = np.repeat(mjj[closing], CLOSURE_COPIES)
    ids = _new_ids(f"closure {window.name}", len(masses))
    _write_sample(context, window, model, written[1], masses, ids)
    pseudo = pseudo_window(context, window)
    if pseudo is not None:
        second = load_background_model(folder / "pseudo_model", window, context.device)
        inside = int(((mjj >= pseudo[0]) & (mjj < pseudo[1])).sum())
        # the masses too come from a fit that saw neither region
        apart = (edges[1:] <= pseudo[0]) | (edges[:-1] >= pseudo[1])
        fit = fit_spectrum(counts, edges, (window.lo, window.hi), *shape, variance=variance, fitted=apart)
        drawn = _drawn(context, fit, pseudo, max(1, round(config.template.oversample * inside)), "pseudo")
        _write_sample(context, window, second, folder / "pseudo.parquet", *drawn)
        written.append(folder / "pseudo.parquet")
    return written


def _drawn(
    context: Context, fit: SpectrumFit, interval: tuple[float, float], size: int, name: str
) -> tuple[npt.NDArray[np.float64], IntArray]:
    ids = _new_ids(f"{name} {interval[0]:g}-{interval[1]:g}", size)
    uniforms = event_uniforms(stage_seed(context.config.seed, "mass", name), ids)[:, 0]
    return draw(fit, *interval, uniforms), ids


def _write_sample(
    context: Context,
    window: Window,
    model: BackgroundModel,
    path: Path,
    mjj: npt.NDArray[np.float64],
    ids: IntArray,
) -> None:
    config = context.config
    with context.reporter.bar(f"{path.stem} {window.name}", 100) as bar:
        x = model.from_noise(
            mjj,
            ids,
            stage_seed(config.seed, path.stem, window.name),
            config.template,
            device=context.device,
            workers=context.workers,
            progress=lambda done, total: bar(100 * done // total),
        )
    columns: dict[str, Any] = {
        "event_id": ids,
        "parent_id": np.full(len(ids), NO_PARENT, dtype=np.int64),
        "mjj": mjj,
        "weight": np.ones(len(ids)),
    }
    columns |= {name: x[:, j] for j, name in enumerate(config.features)}
    write_skim(path, columns, {"template": config.template.method, "window": [window.lo, window.hi]})
