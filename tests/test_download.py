"""Downloads against a local server: whole, verified files or one clear line, and parts that are gone on with."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drapes_hep import remote
from drapes_hep.data import download
from drapes_hep.data.download import SAMPLES, choose, fetch, list_files, size_text
from drapes_hep.errors import ConfigError, DrapesError

RECORD = SAMPLES["lhco-rd"]
BLOCK = download._BLOCK
NAMES = ("raw.h5", "sample.features.h5", "box.masterkey", "notes.txt")


@dataclass
class Site:
    """What the server serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    record: object = None
    status: dict[str, int] = field(default_factory=dict)
    """Answers with this status instead."""
    dies_at: dict[str, list[int]] = field(default_factory=dict)
    """Bytes after which each of the next answers breaks off."""
    ranges: bool = True
    shift: int = 0
    """By how much ranges begin too late."""
    delay: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def describe(self) -> dict:
        return {
            "id": RECORD.record,
            "files": [
                {
                    "key": name,
                    "size": len(content),
                    "checksum": "md5:" + hashlib.md5(content).hexdigest(),
                    "links": {"self": f"{self.url}/files/{name}/content"},
                }
                for name, content in self.files.items()
            ],
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        site: Site = self.server.site
        if self.path.startswith("/api/records/"):
            body = (
                site.record if isinstance(site.record, bytes) else json.dumps(site.record or site.describe()).encode()
            )
            self.answer(site.status.get("record", 200), body)
            return
        name = self.path.split("/")[2]
        wanted = self.headers.get("Range")
        site.asked.append((name, wanted))
        if name in site.status or name not in site.files:
            self.answer(site.status.get(name, 404), b"no")
            return
        content, begin = site.files[name], 0
        if wanted and site.ranges:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-")) + site.shift
            if begin >= len(content):
                self.answer(416, b"")
                return
        end = len(content)
        body = content[begin:]
        deaths = site.dies_at.get(name)
        cut = deaths.pop(0) if deaths else None
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{end}"} if begin else {}
        self.answer(206 if begin else 200, body, headers, cut)

    def answer(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        body = body if cut is None else body[:cut]
        for start in range(0, len(body), 1 << 16):
            self.wfile.write(body[start : start + (1 << 16)])
            time.sleep(self.server.site.delay)
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that goes away is a part of these tests."""


@pytest.fixture
def site(monkeypatch):
    """A server of a record with four files; retries do not wait."""
    rng = np.random.default_rng(1)
    found = Site({name: rng.bytes(300_000 + 1000 * i) for i, name in enumerate(NAMES)})
    server = Server(("127.0.0.1", 0), Handler)
    server.site = found
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(download, "API", f"{found.url}/api/records")
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(first=0.001, longest=0.002, total=0.5))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def drapes(drapes, monkeypatch, tmp_path):
    """Run ``drapes download`` in an empty folder; returns status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(drapes, "download")


def get(site: Site, folder: Path, *wanted: str) -> list[Path]:
    return fetch(choose(RECORD, list_files(RECORD), wanted), folder)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ---- what a record holds ---------------------------------------------------------------------------------------------


def test_names_sizes_and_checksums_come_from_the_record(site):
    found = {one.name: one for one in list_files(RECORD)}
    assert set(found) == set(NAMES)
    for name, content in site.files.items():
        assert found[name].size == len(content)
        assert found[name].checksum == "md5:" + hashlib.md5(content).hexdigest()


def test_kinds_follow_the_names():
    def kind(name):
        return download.RemoteFile(name, 1, "md5:0", "").kind

    assert kind("events_anomalydetection_v2.features.h5") == "features"
    assert kind("events_anomalydetection_qcd_extra_inneronly_features.h5") == "features"
    assert kind("events_anomalydetection_qcd_extra_inneronly_4vecs_and_features.h5") == "raw"
    assert kind("events_anomalydetection.h5") == "raw"
    assert kind("events_LHCO2020_BlackBox1.masterkey") == "labels"
    assert kind("readme.md") == "other"


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["features"], {"sample.features.h5"}),
        (["raw"], {"raw.h5"}),
        (["labels", "raw"], {"raw.h5", "box.masterkey"}),
        (["all"], set(NAMES)),
        (["notes.txt"], {"notes.txt"}),
        (["*.h5"], {"raw.h5", "sample.features.h5"}),
    ],
)
def test_files_are_chosen_by_kind_name_or_pattern(site, wanted, names):
    assert {one.name for one in choose(RECORD, list_files(RECORD), wanted)} == names


def test_a_file_that_the_record_has_not_is_named_with_what_comes_closest(site):
    with pytest.raises(ConfigError, match=r"sample.feature.h5 matches no file .* did you mean 'sample.features.h5'"):
        choose(RECORD, list_files(RECORD), ["sample.feature.h5"])


def test_a_kind_that_the_record_has_not_lists_what_it_has(site):
    del site.files["sample.features.h5"]
    with pytest.raises(ConfigError, match=r"--files features matches no file .* it has .*raw.h5 \(raw\)"):
        choose(RECORD, list_files(RECORD), ["features"])


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1_234_567, "1.23 MB"), (2_540_000_000, "2.54 GB")],
)
def test_sizes_are_written_in_decimal_units(size, text):
    assert size_text(size) == text


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_alone(site, tmp_path):
    (path,) = get(site, tmp_path / "new" / "folder", "raw.h5")
    assert path.read_bytes() == site.files["raw.h5"]
    assert left(path.parent) == {"raw.h5"}


def test_a_file_is_readable_as_any_new_file_is(site, tmp_path):
    (path,) = get(site, tmp_path, "raw.h5")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_verified_file_is_not_fetched_again(site, tmp_path):
    get(site, tmp_path, "raw.h5")
    asked = len(site.asked)
    get(site, tmp_path, "raw.h5")
    assert len(site.asked) == asked


def test_another_file_of_the_same_name_is_never_replaced(site, tmp_path):
    (tmp_path / "raw.h5").write_bytes(b"mine")
    with pytest.raises(DrapesError, match=r"raw.h5: exists and is not the record's file"):
        get(site, tmp_path, "raw.h5")
    assert (tmp_path / "raw.h5").read_bytes() == b"mine"
    assert not site.asked


def test_a_part_is_gone_on_with(site, tmp_path):
    (tmp_path / "raw.h5.part").write_bytes(site.files["raw.h5"][:123_456])
    (path,) = get(site, tmp_path, "raw.h5")
    assert site.asked == [("raw.h5", "bytes=123456-")]
    assert path.read_bytes() == site.files["raw.h5"]
    assert left(tmp_path) == {"raw.h5"}


def test_a_whole_part_needs_no_request(site, tmp_path):
    (tmp_path / "raw.h5.part").write_bytes(site.files["raw.h5"])
    (path,) = get(site, tmp_path, "raw.h5")
    assert site.asked == []
    assert path.read_bytes() == site.files["raw.h5"]


def test_a_part_that_is_too_long_is_begun_again(site, tmp_path):
    (tmp_path / "raw.h5.part").write_bytes(bytes(len(site.files["raw.h5"]) + 1))
    (path,) = get(site, tmp_path, "raw.h5")
    assert site.asked == [("raw.h5", None)]
    assert path.read_bytes() == site.files["raw.h5"]


def test_a_server_without_ranges_begins_again(site, tmp_path):
    site.ranges = False
    (tmp_path / "raw.h5.part").write_bytes(b"x" * 5000)
    (path,) = get(site, tmp_path, "raw.h5")
    assert site.asked == [("raw.h5", "bytes=5000-")]
    assert path.read_bytes() == site.files["raw.h5"]


def test_an_answer_that_begins_elsewhere_is_not_appended(site, tmp_path):
    site.shift, site.dies_at = 10, {"raw.h5": [0] * download._ATTEMPTS}
    (tmp_path / "raw.h5.part").write_bytes(b"x" * 5000)
    with pytest.raises(DrapesError, match="stopped at 0 B"):
        get(site, tmp_path, "raw.h5")


def test_a_connection_that_breaks_is_taken_up_in_the_same_call(site, tmp_path):
    site.dies_at = {"raw.h5": [6 * BLOCK, 3 * BLOCK + 5]}
    (path,) = get(site, tmp_path, "raw.h5")
    assert [wanted for _, wanted in site.asked] == [None, f"bytes={6 * BLOCK}-", f"bytes={9 * BLOCK}-"]
    assert path.read_bytes() == site.files["raw.h5"]


def test_a_server_that_stays_dead_leaves_the_part_for_the_next_call(site, tmp_path):
    site.dies_at = {"raw.h5": [6 * BLOCK, *[0] * download._ATTEMPTS]}
    with pytest.raises(
        DrapesError,
        match=r"stopped at 98.3 kB of 300 kB \(the connection broke\); run the same command again to resume",
    ):
        get(site, tmp_path, "raw.h5")
    assert left(tmp_path) == {"raw.h5.part"}
    assert (tmp_path / "raw.h5.part").read_bytes() == site.files["raw.h5"][: 6 * BLOCK]
    (path,) = get(site, tmp_path, "raw.h5")
    assert site.asked[-1] == ("raw.h5", f"bytes={6 * BLOCK}-")
    assert path.read_bytes() == site.files["raw.h5"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(site, tmp_path, status):
    site.status["raw.h5"] = status
    with pytest.raises(DrapesError, match=rf"the server answers {status}.*; run the same command again"):
        get(site, tmp_path, "raw.h5")
    assert len(site.asked) == download._ATTEMPTS


def test_a_missing_file_is_asked_for_once(site, tmp_path):
    site.status["raw.h5"] = 404
    with pytest.raises(DrapesError, match=r"raw.h5/content: the server answers 404 Not Found"):
        get(site, tmp_path, "raw.h5")
    assert len(site.asked) == 1
    assert left(tmp_path) == set()


def test_a_wrong_checksum_leaves_nothing(site, tmp_path):
    site.record = site.describe()
    site.files["raw.h5"] = b"!" + site.files["raw.h5"][1:]
    with pytest.raises(DrapesError, match=r"does not match the checksum md5:\w+ of the record and was deleted"):
        get(site, tmp_path, "raw.h5")
    assert left(tmp_path) == set()


def test_a_spoilt_part_costs_one_failure_and_no_more(site, tmp_path):
    (tmp_path / "raw.h5.part").write_bytes(b"x" * 5000)
    with pytest.raises(DrapesError, match="does not match the checksum"):
        get(site, tmp_path, "raw.h5")
    (path,) = get(site, tmp_path, "raw.h5")
    assert path.read_bytes() == site.files["raw.h5"]


@pytest.mark.parametrize(("change", "problem"), [(b"more", "sends more bytes"), (None, "has fewer bytes")])
def test_a_size_that_is_not_the_records(site, tmp_path, change, problem):
    site.record = site.describe()
    content = site.files["raw.h5"]
    site.files["raw.h5"] = content + change if change else content[:-4]
    with pytest.raises(DrapesError, match=problem):
        get(site, tmp_path, "raw.h5")
    assert left(tmp_path) == set()


def test_what_came_before_a_failure_stays(site, tmp_path):
    site.status["sample.features.h5"] = 404
    with pytest.raises(DrapesError, match="404"):
        get(site, tmp_path, "raw.h5", "sample.features.h5")
    assert left(tmp_path) == {"raw.h5"}


def test_two_downloads_do_not_write_one_part(site, tmp_path):
    with (tmp_path / "raw.h5.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DrapesError, match=r"raw.h5.part: another download is writing this file"):
            get(site, tmp_path, "raw.h5")


def test_space_is_checked_first(site, tmp_path, monkeypatch):
    (tmp_path / "raw.h5.part").write_bytes(site.files["raw.h5"][:200_000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    get(site, tmp_path, "raw.h5")
    with pytest.raises(DrapesError, match=r"new: 300 kB are needed but 100 kB are free"):
        get(site, tmp_path / "new", "raw.h5")
    assert not (tmp_path / "new").exists()


def test_a_folder_below_a_file_cannot_be_written(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DrapesError, match=r"cannot be written \(Not a directory\)"):
        get(site, tmp_path / "file" / "below", "raw.h5")


def test_a_killed_download_leaves_its_part_alone(site, tmp_path):
    """SIGKILL: no handler runs, and still nothing but the part is there, and the next call goes on with it."""
    site.delay = 0.2
    script = (
        "import sys; from drapes_hep.data import download as d; d.API = sys.argv[1]; s = d.SAMPLES['lhco-rd'];"
        "d.fetch(d.choose(s, d.list_files(s), ['raw.h5']), sys.argv[2])"
    )
    with subprocess.Popen([sys.executable, "-c", script, download.API, str(tmp_path)]) as process:
        deadline = time.monotonic() + 30
        while not site.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert left(tmp_path) == {"raw.h5.part"}
    site.delay = 0.0
    (path,) = get(site, tmp_path, "raw.h5")
    assert path.read_bytes() == site.files["raw.h5"]


# ---- the record ------------------------------------------------------------------------------------------------------


def entry(**changes):
    good = {"key": "a.h5", "size": 3, "checksum": "md5:00", "links": {"self": "https://example.org/a.h5"}}
    return {"files": [{**good, **changes}]}


@pytest.mark.parametrize(
    "record",
    [
        b"<html>maintenance</html>",
        [],
        {"files": []},
        {"status": 404},
        {"files": 3},
        {"files": [{"key": "a.h5"}]},
        entry(key="../a.h5"),
        entry(key="/etc/a.h5"),
        entry(key=".hidden"),
        entry(size="large"),
        entry(checksum="00"),
        entry(checksum="nonsense:00"),
        entry(links={"self": "file:///etc/passwd"}),
    ],
    ids=str,
)
def test_an_answer_that_describes_no_files(site, record, drapes, tmp_path):
    site.record = record if record else {"nothing": 1}
    status, out, err = drapes("lhco-rd")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "does not describe a record's files as expected" in err
    assert left(tmp_path) == set()


@pytest.mark.parametrize("status", [404, 410, 429, 500])
def test_a_record_that_is_not_given(site, status, drapes):
    site.status["record"] = status
    code, out, err = drapes("lhco-rd")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"/4536377 answers {status} " in err


def test_offline_is_one_clear_line(drapes, monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(download, "API", f"http://127.0.0.1:{port}/api/records")
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(first=0.001, longest=0.002))
    status, out, err = drapes("lhco-rd", "-o", "data")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "cannot be reached (Connection refused) (6 attempts in 0 s); check the network" in err
    assert "https://zenodo.org/records/4536377" in err
    assert left(tmp_path) == set()


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_features_are_what_one_gets(site, drapes, tmp_path):
    status, out, err = drapes("lhco-rd", "-o", "data")
    assert status == 0
    assert out == "data/sample.features.h5\n"
    assert "data/sample.features.h5: 301 kB, checksum verified" in err
    assert left(tmp_path / "data") == {"sample.features.h5"}


def test_a_second_call_says_that_nothing_was_to_be_done(site, drapes):
    drapes("lhco-rd")
    status, out, err = drapes("lhco-rd")
    assert (status, out) == (0, "sample.features.h5\n")
    assert "sample.features.h5: already downloaded, checksum verified" in err


def test_a_resumed_download_says_where(site, drapes, tmp_path):
    (tmp_path / "raw.h5.part").write_bytes(site.files["raw.h5"][:100_000])
    status, _, err = drapes("lhco-rd", "--files", "raw")
    assert status == 0
    assert "raw.h5: resuming at 100 kB of 300 kB" in err


def test_quiet_says_nothing_but_the_path(site, drapes):
    assert drapes("lhco-rd", "--quiet") == (0, "sample.features.h5\n", "")


def test_the_list_shows_sizes_and_downloads_nothing(site, drapes, tmp_path):
    status, out, _ = drapes("lhco-rd", "--list")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].endswith("doi:10.5281/zenodo.4536377")
    assert [line.split()[0] for line in lines[1:]] == sorted(NAMES)
    assert lines[1 + sorted(NAMES).index("raw.h5")].split()[1:4] == ["300", "kB", "raw"]
    assert left(tmp_path) == set()


def test_an_unknown_sample_is_one_line(site, drapes):
    status, _, err = drapes("lhco")
    assert status == 2
    assert "no sample 'lhco'; available: lhco-rd, lhco-blackboxes, lhco-extra-qcd" in err


def test_interrupted_by_the_user(site, drapes, monkeypatch, tmp_path):
    """Ctrl-C amid a file: what is here stays, the line says how to go on."""
    (tmp_path / "raw.h5.part").write_bytes(site.files["raw.h5"][:50_000])

    def interrupt(self, url, stream, have):
        stream.write(site.files["raw.h5"][have : have + 7])
        raise KeyboardInterrupt

    monkeypatch.setattr(download.ResumingDownloader, "_continue", interrupt)
    status, _, err = drapes("lhco-rd", "--files", "raw", "--quiet")
    assert status == 130
    assert "run the same command again to resume" in err
    assert left(tmp_path) == {"raw.h5.part"}
    assert (tmp_path / "raw.h5.part").stat().st_size == 50_007
