"""The configuration: every mistake is one line that names the place."""

from __future__ import annotations

import pytest
import yaml
from conftest import ROOT

from drapes_hep.config import Config, load_config
from drapes_hep.errors import ConfigError
from drapes_hep.regions import Window, blinded, parse_window, sliding_windows

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
        ({"mass": {"range": [6000, 2700]}}, "range must rise"),
        ({"windows": {"first": 2700, "last": 3500}}, "need a sideband on both sides"),
        ({"windows": {"width": -400}}, "greater than 0"),
        ({"signal": {"inject": 5}}, "signal.inject needs labelled events"),
        ({"seed": "one"}, "'seed'"),
        ({"template": {"sigma_min": 100}}, "must lie below sigma_max"),
        ({"cwola": {"classifier": "forest"}}, "neither 'trees' nor 'mlp'"),
        ({"features": ["m_j1", "m_j1"]}, "a feature is listed twice"),
        ({"cwola": {"features": []}}, "'cwola.features': tuple should have at least 1 item"),
        ({"training": {"validation": 0.6, "closure": 0.5}}, "leave less than a tenth"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, {**MINIMAL, **change}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1", "not valid YAML"), ("- 1", "a mapping of keys"), ("!!python/object:os.system {}", "not valid YAML")],
)
def test_what_is_no_configuration_is_refused(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nselection: {leading_pt: 700}\nselection: {leading_pt: 1200}\n", "'selection' .* in line 3"),
        ("name: a\nmass: {0x1: 2, 1: 3}\n", "'1' .* in line 2"),
        ("name: a\nmass:\n  range: [1, 2]\n  range: [1, 3]\n", "'range' .* in line 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, words):
    """The later one would win, and a cut vanish."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: {1: 2, '1': 3}\n",
        "a: {t: {base: &b {x: 1}, mid: &m {<<: *b, x: 2}}}\nlast: {<<: *m}\n",
        "a: {b: &b {x: 1}, c: &c {y: 1}, d: {<<: *b, <<: *c, x: 2}}\n",
    ],
)
def test_keys_that_differ_or_are_merged_are_not_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"missing|unknown key"):
        load_config(path)


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
