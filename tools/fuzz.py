"""Fuzz everything that is read: files of events, configurations, run directories.

    python tools/fuzz.py --minutes 10                    every target, ten minutes each
    python tools/fuzz.py hdf5 config --minutes 1 --seed 7
    python tools/fuzz.py ttree --files FOLDER            real files of yours instead of generated ones
    python tools/fuzz.py --replay recipe.json            one recipe again

Needs the extra ``test``. Recipes are drawn by hypothesis, from seeds that are printed; each is executed in a process
with limits of time and memory. A failure is anything but a result whose invariants hold, or one line that says what is
wrong. Its recipe is cut to the mutations that it needs and written to OUTPUT, where ``summary.json`` counts what
happened. Exit status 1 if there was a failure.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import hypothesis
import typer
from hypothesis import Phase, given, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.fuzzing.isolation import Worker  # noqa: E402
from tools.fuzzing.strategies import recipes  # noqa: E402
from tools.fuzzing.targets import TARGETS, Outcome, execute, list_bases  # noqa: E402

BATCH = 200
"""Recipes of one seed."""


class Campaign:
    """The fuzzing of one target.

    Attributes
    ----------
    counts : Counter
        Recipes by the kind of their outcome.
    failures : dict
        The recipe of each signature, with its outcome and how often it was met.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, dict[str, Any]] = {}

    def run(self, recipe: dict[str, Any]) -> None:
        """Execute a recipe and keep what is new."""
        outcome = self.worker.run(recipe)
        self.counts[outcome.kind] += 1
        if outcome.kind != "failure":
            return
        known_failure = self.failures.get(outcome.signature)
        if known_failure is None:
            least = self._cut(recipe, outcome)
            self.failures[outcome.signature] = {"recipe": least, "times": 1, "text": outcome.text}
        else:
            known_failure["times"] += 1

    def _cut(self, recipe: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Leave out the mutations that the failure does not need; a hang is too slow to cut."""
        if outcome.signature.startswith("hang"):
            return recipe
        place = 0
        while len(recipe["mutations"]) > 1 and place < len(recipe["mutations"]):
            fewer = {**recipe, "mutations": [mutation for i, mutation in enumerate(recipe["mutations"]) if i != place]}
            if self.worker.run(fewer).signature == outcome.signature:
                recipe = fewer
            else:
                place += 1
        return recipe


def fuzz(target: str, bases: tuple[str, ...], campaign: Campaign, seconds: float, seed: int) -> None:
    """Draw and execute recipes until time is up."""
    strategy = recipes(target, bases, tuple(_keys()))
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:

        @hypothesis.seed(seed * 1_000_003 + number)
        @settings(
            max_examples=BATCH,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @given(strategy)
        def batch(recipe: dict[str, Any]) -> None:
            if time.monotonic() < end:
                campaign.run(recipe)

        batch()
        number += 1


def _keys() -> list[str]:
    from drapes_hep.config import Config
    from drapes_hep.keys import section_of

    out = []
    for name, info in Config.model_fields.items():
        section = section_of(info)
        out += [name] if section is None else [name, *(f"{name}.{key}" for key in section.model_fields)]
    return out


def main(
    targets: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(TARGETS)}; all by default.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="Time for each target.")] = 10.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first batch of recipes.")] = 1,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write; made if missing.")] = Path(
        "fuzzing.part"
    ),
    files: Annotated[
        Path | None, typer.Option("--files", help="A folder of files to mutate, up to 4 MiB each.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Limit of one recipe.")] = 180.0,
    memory: Annotated[float, typer.Option(help="Limit of memory, GiB.")] = 6.0,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Execute one recipe in this process, and stop.")
    ] = None,
) -> None:
    """Fuzz; see the head of this file."""
    output = output.resolve()
    if replay is not None:
        outcome = execute(json.loads(replay.read_text(encoding="utf-8")), output / "replay")
        typer.echo(f"{outcome.kind}: {outcome.text}")
        raise typer.Exit(outcome.kind == "failure")
    unknown = set(targets or ()) - set(TARGETS)
    if unknown:
        raise typer.BadParameter(f"no target {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    failed = False
    for target in targets or TARGETS:
        folder = output / target
        folder.mkdir(parents=True, exist_ok=True)
        bases = list_bases(target, folder)
        if files is not None:
            bases = tuple(
                sorted(
                    str(path.resolve())
                    for path in files.rglob("*")
                    if path.is_file() and path.stat().st_size <= 1 << 22
                )
            )
        campaign = Campaign(Worker(folder, target, bases[0], seconds, memory))
        typer.echo(f"{target}: {len(bases)} bases, seed {seed}, {minutes:g} minutes")
        begin = time.monotonic()
        fuzz(target, bases, campaign, 60 * minutes, seed)
        campaign.worker.stop()
        record = {
            "target": target,
            "seed": seed,
            "seconds": round(time.monotonic() - begin, 1),
            "executed": sum(campaign.counts.values()),
            "outcomes": dict(campaign.counts),
            "failures": campaign.failures,
        }
        (output / f"{target}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(campaign.counts.items()))
        typer.echo(f"{target}: {record['executed']} executed: {counted}")
        for signature, failure in campaign.failures.items():
            failed = True
            typer.echo(f"  {failure['times']:5} x {signature}\n          {json.dumps(failure['recipe'])}")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
