"""Quality of a template against the network evaluations that it costs, for each solver and path.

drapes study solver-steps configs/studies.yaml --set study.data_share=1
"""

from __future__ import annotations

from collections.abc import Sequence

from drapes_hep.config import Config
from drapes_hep.diffusion.samplers import EVALUATIONS
from drapes_hep.plots import Panel
from drapes_hep.studies.design import Entry, Row, Study, auc_panel, injected, numbers, of_template, repetitions, select
from drapes_hep.studies.trials import Trial

SOLVERS = {
    "euler": "Euler (DDIM)",
    "heun": "Heun",
    "midpoint": "Midpoint",
    "dpm2m": "DPM-Solver++(2M)",
    "angle": "Angle",
}
PATHS = {"edm": "EDM", "flow": "Flow matching"}


def entries(config: Config) -> list[Entry]:
    """Make the template from noise with each solver on each path, at each cost."""
    out = []
    for repetition in repetitions(injected(config, 0)):
        for path, path_title in PATHS.items():
            trained = repetition.model_copy(update={"training": repetition.training.model_copy(update={"path": path})})
            for solver, title in SOLVERS.items():
                for cost in config.study.evaluations:
                    # Heun's last step takes one evaluation
                    steps = (cost + (solver == "heun")) // EVALUATIONS[solver]
                    changed = of_template(trained, "from_noise", solver=solver, steps=steps, oversample=1.0)
                    labels = {"path": path_title, "solver": title, "seed": repetition.seed}
                    out.append(Entry(Trial("quality", changed, "from_noise"), labels))
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:  # noqa: ARG001
    """Draw a panel a path."""
    label = "Network evaluations a template event"
    return [auc_panel(select(rows, path=title), "evaluations", label, title, by="solver") for title in PATHS.values()]


STUDY = Study("AUC against network evaluations, of each solver and path", entries, numbers, panels)
