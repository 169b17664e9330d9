"""The configuration: every mistake is one line that names the place."""

from __future__ import annotations

import pytest
import yaml
from conftest import ROOT

from drapes_hep.caller import from_shell
from drapes_hep.config import Config, load_config
from drapes_hep.errors import ConfigError
from drapes_hep.regions import Window, blinded, parse_window, sliding_windows


@pytest.fixture(autouse=True)
def typed():
    """The mistakes below are made on the command line."""
    with from_shell():
        yield


MINIMAL = {"name": "x", "data": {"path": "a.root"}}


def write(folder, tree):
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_defaults_are_filled_in_and_paths_are_relative_to_the_file(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert config.data.path == str(tmp_path / "a.root")
    assert config.blind
    assert config.hunt.background_efficiencies == (1.0, 0.1, 0.01, 0.001)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bundled_configuration_is_valid(path):
    config = load_config(path)
    assert sliding_windows(config)[-1].lo == config.windows.last
    assert config.blind == path.stem.startswith("own_")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.root", "{}/a.root"),
        (["a.root", "b"], ("{}/a.root", "{}/b")),
        ({"*.root": "Events"}, {"{}/*.root": "Events"}),
    ],
)
def test_every_form_of_a_path_is_made_absolute(tmp_path, path, expected):
    def placed(value):
        if isinstance(value, dict):
            return {placed(key): tree for key, tree in value.items()}
        return value.format(tmp_path) if isinstance(value, str) else tuple(map(placed, value))

    assert load_config(write(tmp_path, {**MINIMAL, "data": {"path": path}})).data.path == placed(expected)


def test_an_assignment_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = load_config(write(tmp_path, MINIMAL), ["data.path=b.h5", "windows.step=100", "seed=7"])
    assert config.data.path == str(tmp_path / "here" / "b.h5")
    assert (config.windows.step, config.seed) == (100, 7)


def test_the_inclusive_point_is_always_there(tmp_path):
    config = load_config(write(tmp_path, {**MINIMAL, "hunt": {"background_efficiencies": [0.01]}}))
    assert config.hunt.background_efficiencies == (1.0, 0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"study": {"templates": "from_noise"}},
            "'study.templates': expected a list in brackets, such as [from_noise]",
        ),
        ({"trainning": {}}, "unknown key 'trainning'; did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'training.epochs'?"),
        ({"data": {}}, "'data.path' is missing"),
        ({"windows": {"first": 4000, "last": 3000}}, "the last window starts below the first"),
        ({"mass": {"range": [6000, 2700]}}, "range must be increasing"),
        ({"windows": {"first": 2700, "last": 3500}}, "need a sideband on both sides"),
        ({"windows": {"width": -400}}, "greater than 0"),
        ({"signal": {"inject": 5}}, "signal.inject needs labelled events"),
        ({"seed": "one"}, "'seed'"),
        ({"template": {"sigma_min": 100}}, "must be below sigma_max"),
        (
            {"cwola": {"classifier": "forest"}},
            "'cwola.classifier': no classifier 'forest'; available: trees, sklearn_trees, mlp, ",
        ),
        (
            {"mass": {"fit": "dijets"}},
            "'mass.fit': no mass shape 'dijets'; did you mean 'dijet5' or 'dijet4'? Available: ",
        ),
        ({"features": ["m_j1", "m_j1"]}, "a feature is listed twice"),
        ({"cwola": {"features": []}}, "'cwola.features': tuple should have at least 1 item"),
        ({"mass.range": [2700, 6000]}, "the key 'mass.range' holds a dot: sections are nested, so write 'mass:' and"),
        ({"training": {"training.epochs": 3}}, "the key 'training.epochs' repeats its section: write 'epochs: ...'"),
        ({"epochs": 3}, "unknown key 'epochs'; did you mean 'training.epochs' or 'constituents.epochs'?"),
        ({"mass": {"windows": {}}}, "unknown key 'mass.windows'; did you mean 'windows' outside of all sections?"),
        ({"mass": {"folds": 2}}, "unknown key 'mass.folds'; did you mean 'cwola.folds'?"),
        ({"hunt": {"min-events": 3}}, "unknown key 'hunt.min-events'; did you mean 'hunt.min_events'?"),
        ({"TRAINING": {}}, "unknown key 'TRAINING'; did you mean 'training'?"),
        ({"training": 3}, "'training' is a section: write its keys below it, indented, such as 'path: edm'"),
        ({"training": ["epochs"]}, "'training' is a section"),
        ({"seed": {"value": 3}}, "'seed': expected a whole number, got keys and values"),
        ({"seed": "7"}, "'seed': expected a whole number, got the text '7'"),
        ({"seed": True}, "'seed': expected a whole number, got true"),
        ({"seed": 1.5}, "'seed': expected a whole number, got the number 1.5"),
        ({"seed": None}, "'seed': expected a whole number, got nothing; remove the key to use its default"),
        ({"seed": 1e30}, "'seed': 1e+30 is not exact: write all of its digits"),
        ({"seed": 2**63}, "'seed': 9223372036854775808 is too large: at most 9223372036854775807"),
        ({"mass": {"sqrt_s": 2**63}}, "'mass.sqrt_s': 9223372036854775808 is too large"),
        ({"mass": {"sqrt_s": True}}, "'mass.sqrt_s': expected a number, got true"),
        ({"mass": {"range": [1, 2, 3]}}, "'mass.range': expected a list of 2, got 3"),
        ({"blind": 1}, "'blind': expected true or false, got the number 1"),
        ({"blind": "maybe"}, "'blind': expected true or false, got the text 'maybe'"),
        ({"plots": {"label": 2016}}, "'plots.label': expected text, got the number 2016; quote it if it is text"),
        ({"data": {"path": ["a.root", 3]}}, "'data.path': 2: expected text or a list, got the number 3"),
        ({"mass": {"draw": "FIT"}}, "'mass.draw': expected 'fit' or 'kde', got the text 'FIT'; did you mean 'fit'?"),
        ({"selection": {"undefined": float("nan")}}, "'selection.undefined': expected 'drop' or a finite number"),
        ({"windows": {"width": float("inf")}}, "'windows.width': expected a finite number, got the number inf"),
        ({"cwola": {"options": {"rate": float("nan")}}}, "rate: expected"),
        ({"training": {"validation": 0.6, "closure": 0.5}}, "leave less than a tenth"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, {**MINIMAL, **change}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "c.yaml, line 1: the list that begins with '\\[' is not closed"),
        (b"- 1", "a configuration is a mapping of keys, such as 'name: search', not a list"),
        (b"", "c.yaml: is empty"),
        (b"# nothing\n", "c.yaml: is empty"),
        (b"name: x\nplots: {label: \xe9}\n", "c.yaml, line 2: byte 0xe9 is not UTF-8"),
        (b"name: x\nseed: 0123\n", "c.yaml, line 2: 'seed': 0123 may be decimal or octal: drop the leading zero"),
        (
            b"name: x\ndata: {path: a}\ncwola: {options: {kinematics: no}}",
            "'cwola.options': kinematics: no may be text or false: write true or false, or quote it",
        ),
        (b"name: x\nmass:\n  widht: 3\n", "c.yaml, line 3: unknown key 'mass.widht'"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, content, words):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training: {epochs: 1e4}", "training.epochs", 10_000),
        ("training: {epochs: 2.0e3}", "training.epochs", 2000),
        ("training: {epochs: 1_000}", "training.epochs", 1000),
        ("training:\n  # epochs: 3", "training.epochs", 100),
        ("seed: 9223372036854775807", "seed", 2**63 - 1),
        ("study: {injections: [1e3, 2]}", "study.injections", (1000, 2)),
        ("blind: no", "blind", False),
        ("blind: On", "blind", True),
        ("plots: {label: no}", "plots.label", "no"),
        ("cwola: {options: {kind: 'no'}}", "cwola.options", {"kind": "no"}),
        ("plots: {label: 12:30:00}", "plots.label", "12:30:00"),
        ("plots: {label: 2016-01-02}", "plots.label", "2016-01-02"),
        ("plots: {label: '0123'}", "plots.label", "0123"),
        ("cwola: {options: {rate: 1e-3}}", "cwola.options", {"rate": 0.001}),
    ],
)
def test_a_value_is_what_is_meant(tmp_path, text, key, value):
    """In the file and by ``--set``: one parser reads both."""
    path = tmp_path / "c.yaml"
    path.write_text(f"name: x\ndata: {{path: a.root}}\n{text}\n")

    def read(config):
        for name in key.split("."):
            config = getattr(config, name)
        return config

    found = read(load_config(path))
    assert (found, type(found)) == (value, type(value))
    if "#" not in text:
        section = text.partition(": ")[2]
        assert read(load_config(write(tmp_path, MINIMAL), [f"{key.partition('.')[0]}={section}"])) == value


def test_an_assignment_of_two_readings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--set seed=0123: 0123 may be decimal or octal"):
        load_config(write(tmp_path, MINIMAL), ["seed=0123"])


def test_an_assignment_changes_no_section_of_the_same_alias(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndata: {path: a}\ntraining: &t {epochs: 3}\nconstituents: *t\n")
    config = load_config(path, ["training.epochs=4"])
    assert (config.training.epochs, config.constituents.epochs) == (4, 3)


@pytest.mark.parametrize("assignment", ["seed", "=1", "data.path.x=1", "seed=[1", "mass={fit: a, fit: b}"])
def test_a_malformed_assignment_is_refused(tmp_path, assignment):
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, MINIMAL), [assignment])


def test_a_missing_configuration_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="drapes init"):
        load_config(tmp_path / "none.yaml")


def test_windows_slide_from_first_to_last():
    config = Config.model_validate({**MINIMAL, "windows": {"width": 400, "step": 200, "first": 3100, "last": 4700}})
    windows = sliding_windows(config)
    assert [window.name for window in windows][:2] == ["3100-3500", "3300-3700"]
    assert len(windows) == 9
    assert windows[-1].hi == 5100


def test_a_window_and_its_sidebands_share_no_event():
    window = Window(3300, 3700, 2700, 6000)
    masses = [2699.9, 2700, 3299.9, 3300, 3699.9, 3700, 5999.9, 6000]
    assert window.in_signal_region(masses).tolist() == [False, False, False, True, True, False, False, False]
    assert window.in_sidebands(masses).tolist() == [False, True, True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("low", "high", "words"), [(3700, 3300, "inverted"), (2700, 3300, "no sideband"), (5000, 6000, "no sideband")]
)
def test_a_window_without_room_is_refused(low, high, words):
    with pytest.raises(ConfigError, match=words):
        Window(low, high, 2700, 6000)


@pytest.mark.parametrize(
    ("text", "words"), [("3700-3300", "inverted"), ("3300", "LO-HI"), ("3301-3701", "not a window")]
)
def test_a_window_is_named_by_its_edges(text, words):
    windows = (Window(3300, 3700, 2700, 6000),)
    assert parse_window("3300-3700", windows) == windows[0]
    with pytest.raises(ConfigError, match=words):
        parse_window(text, windows)


def test_blinding_hides_every_window():
    windows = (Window(3300, 3700, 2700, 6000), Window(3500, 3900, 2700, 6000))
    assert blinded([3200.0, 3400.0, 3800.0, 3900.0], windows).tolist() == [False, True, True, False]


BOOLEANS = ("blind", "data.labels", "constituents.conserve")
WORDS = ("yes", "no", "on", "off", "true", "false", "True", "OFF")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("key", BOOLEANS)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_boolean_in_quotes_is_refused_everywhere(tmp_path, key, word, quote):
    path = tmp_path / "c.yaml"
    section, _, last = key.rpartition(".")
    value = f"{last}: {quote}{word}{quote}"
    files = "path: a.root"
    own = f"data: {{{files}, {value}}}" if section == "data" else f"data: {{{files}}}\n"
    other = {"data": "", "": value}.get(section, f"{section}: {{{value}}}")
    path.write_text(f"name: x\n{own}{other}\n")
    said = f"'{key}': expected true or false, got the text '{word}' in quotes: remove them"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).endswith(said)
    assert str(caught.value).startswith(f"{path}, line ")
    assignment = f"{key}={quote}{word}{quote}"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), [assignment])
    assert str(caught.value) == f"--set {assignment}: {said}"


@pytest.mark.parametrize(
    ("assignments", "to_blame", "words"),
    [
        (["seed=x"], "--set seed=x", "'seed': expected a whole number"),
        (["blind=true", "sede=1", "seed=2"], "--set sede=1", "unknown key 'sede'"),
        (["windows.wdith=3"], "--set windows.wdith=3", "unknown key 'windows.wdith'"),
        (["windows={first: a}"], "--set windows={first: a}", "'windows.first': expected a number"),
        (["windows.first=9000"], "--set windows.first=9000", ""),
        (["seed=3", "mass.range=[3200, 6000]"], "--set mass.range=[3200, 6000]", "windows from"),
        (
            ["template.method=from_window", "template.strength=null"],
            "--set template.method=from_window",
            "'template': from_w",
        ),
        (["seed=x", "seed=y"], "--set seed=y", "'seed': expected a whole number, got the text 'y'"),
        (["data.path=[]"], "--set data.path=[]", "'data.path': is empty"),
        (["data.path="], "--set data.path=", "'data.path': has no value and no default"),
    ],
)
def test_a_mistake_of_an_assignment_names_the_assignment(tmp_path, assignments, to_blame, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), assignments)
    assert str(caught.value).startswith(f"{to_blame}: {words}")


def test_a_mistake_of_the_file_names_the_file_whatever_is_assigned(tmp_path):
    path = write(tmp_path, {**MINIMAL, "windows": {"width": -1}})
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["seed=3", "windows.step=100"])
    assert str(caught.value).startswith(f"{path}, line ")


NO_FILES = [[], "", " ", [""], [[]], [[""]], ["a.root", ""]]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in ("data.path", "template.source", "study.source") for value in NO_FILES]
    + [("data.path", {}), ("data.path", {"": "Events"}), ("data.truth", "")],
)
def test_a_list_of_no_files_is_refused_with_its_key(tmp_path, key, value):
    section, name = key.split(".")
    path = write(tmp_path, {**MINIMAL, section: {**MINIMAL.get(section, {}), name: value}})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}, line ")
    assert f"'{key}': is empty" in str(caught.value)
