"""The name of a trial's record: a hash of all that decides its numbers."""

from __future__ import annotations

from drapes_hep.config import keys_of
from drapes_hep.cwola.classifiers import find_classifier
from drapes_hep.cwola.trees import Trees, engine_of
from drapes_hep.files import content_hash
from drapes_hep.keys import part_of
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.plugins import source_hashes
from drapes_hep.spectrum.shapes import shape_sources
from drapes_hep.studies.trials import SampleKeys, Trial, draw_key, model_key
from drapes_hep.templates.registry import method_of

__all__ = ["TRIAL_CODE", "trial_key"]

TRIAL_CODE = ("studies.measures",)
"""Where the code of a trial begins."""


def trial_key(trial: Trial, keys: SampleKeys) -> str:
    """Name a trial by all that decides its numbers."""
    config = trial.config
    tree = config.model_dump(mode="json")
    classifier = find_classifier(config.cwola.classifier, config.folder)
    own = [
        *(trial.kind, trial.subject, trial.gensr, trial.unseen, trial.in_sidebands, trial.trainings),
        part_of(tree, keys_of("classify")),
        config.classifier_features,
        # editing a classifier of one's own makes old records stale
        list(source_hashes(classifier)),
        *(engine_of(classifier), Trees.engine()),
    ]
    if trial.kind == "sculpting":
        own.append(part_of(tree, keys_of("study.sculpting")))
    if trial.models:
        own += [
            part_of(tree, keys_of("generate")),
            shape_sources(config.mass),
            *(model_key(config, keys, saw) for saw in trial.models),
        ]
        if method_of(config).source == "simulation":
            own.append(keys.simulation)
    return content_hash([*own, *draw_key(config, keys), code_hash(*TRIAL_CODE)])
