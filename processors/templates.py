"""Template events generated from chunks of their parents, data or simulation, with a trained model.

The events pass the selection of the run. The skim of the run can be used too, and must be used if the files have signal
that the run did not inject (``signal.inject``). The output is, chunk by chunk, the template of the run: the same event
ids, masses and features, event by event. Use the data for a template from the window or the sidebands
(``from_window``, ``from_sidebands``), the other simulation for ``from_simulation``::

    from drapes_hep.events.processing import run
    output, report = run({"data": {"files": files}}, Templates({"run": "runs/mine", "window": "3300-3700"}))
    output["hists"]["m_j1"], output["skim"].columns()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hist
import numpy as np
from coffea import processor

from drapes_hep.errors import ConfigError
from drapes_hep.events.accumulate import ColumnParts, chunk_key, feature_axis, fill_checked
from drapes_hep.events.types import Events
from drapes_hep.stages.generate_chunks import load_chunk_template
from drapes_hep.stages.skim import load_selection, make_processor
from drapes_hep.templates.tables import EventTable

__all__ = ["TemplateSettings", "Templates"]


@dataclass(frozen=True)
class TemplateSettings:
    """Settings: the run and the window.

    Parameters
    ----------
    run : str
        Directory of a run that has generated its template.
    window : str
        ``LO-HI`` in GeV.
    """

    run: str
    window: str


class Templates(processor.ProcessorABC):  # type: ignore[misc]
    """Make template events of each chunk; without state: every process reads the model once.

    Parameters
    ----------
    settings : TemplateSettings or mapping
        The fields of :class:`TemplateSettings`.

    Notes
    -----
    The output is ``{"hists", "cutflow", "skim"}``. ``hists`` has a category ``kind`` with the parents and the
    template made from them.
    """

    def __init__(self, settings: TemplateSettings | Mapping[str, str]) -> None:
        try:
            self.settings = settings if isinstance(settings, TemplateSettings) else TemplateSettings(**settings)
        except TypeError as error:
            raise ConfigError(f"Templates: expected the settings run and window ({error})") from None

    def process(self, events: Events) -> dict[str, Any]:
        """Select one chunk, and make the template events that start from it."""
        plan = load_chunk_template(self.settings.run, self.settings.window)
        config, dataset = plan.config, str(events.metadata["dataset"])
        selected = make_processor(config, load_selection(config)).process(events)
        columns = selected["skim"].columns()
        x = np.stack([columns[name] for name in config.features], axis=1)
        jets = columns["jets"] if "jets" in plan.method.columns else None
        parents, template = plan(EventTable(x, columns["mjj"], columns["weight"], columns["event_id"], jets))
        out = {
            "event_id": template.event_id,
            "parent_id": template.parent_id,
            "mjj": template.mjj,
            "weight": template.weight,
        }
        out |= {name: template.x[:, j] for j, name in enumerate(config.features)}
        if template.jets is not None:
            out["jets"] = template.jets
        if template.model is not None:
            # the classifiers of a fold may see the events of its model alone
            out["model"] = template.model
        hists = {}
        for j, name in enumerate(("mjj", *config.features)):
            filled = hist.Hist(
                hist.axis.StrCategory([dataset], growth=True, name="dataset"),
                hist.axis.StrCategory(["parents", "template"], name="kind"),
                feature_axis(name),
                storage="weight",
            )
            for kind, table in (("parents", parents), ("template", template)):
                values = {name: table.mjj if name == "mjj" else table.x[:, j - 1]}
                fill_checked(filled, weight=table.weight, dataset=dataset, kind=kind, **values)
            hists[name] = filled
        key = chunk_key(events.metadata)
        return {"hists": hists, "cutflow": selected["cutflow"], "skim": ColumnParts({key: out})}

    def postprocess(self, accumulator: Any) -> Any:
        """Return the accumulator unchanged."""
        return accumulator
