"""Files behind URLs: every kind in parts over HTTP, and one line for whatever a server does."""

from __future__ import annotations

import contextlib
import functools
import gc
import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import ROOT, make_columns

from drapes_hep import remote
from drapes_hep.config import load_config
from drapes_hep.errors import DrapesError, InputError
from drapes_hep.events.chunks import file_key, split
from drapes_hep.events.formats import hdf5_files
from drapes_hep.events.formats.hdf5_files import open_hdf5
from drapes_hep.events.formats.writers import write_feature_root, write_raw_hdf5
from drapes_hep.events.paths import expand
from drapes_hep.events.processing import run
from drapes_hep.events.readers import read, scan
from drapes_hep.events.skims import write_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plugins import load_processor
from drapes_hep.remote import UnreachableError, fingerprint, is_url, network_error, retried, retry_after, sibling
from drapes_hep.stages.skim import skim

SETTINGS = {"leading_pt": 1200, "mass_range": (2000, 8000)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder in parts; the server's attributes say how it misbehaves."""

    protocol_version = "HTTP/1.1"
    # headers and body are written one after the other: the client would acknowledge the first only after 40 ms
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle(self):
        # a client may leave in the middle of an answer that is longer than it asked for
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server = self.server
        name = self.path.partition("?")[0].lstrip("/")
        file = server.folder / name
        if status := server.statuses.get(name, server.status):
            self.send_error(status)
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        action, amount = server.script.pop(0) if body and server.script and self.headers.get("Range") else ("", 0)
        if action == "status":
            self.send_response(amount)
            for header, value in server.says.items():
                self.send_header(header, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if action == "call":
            amount()
            content = file.read_bytes()
        if action == "sleep":
            time.sleep(amount)
        first, last, status = 0, len(content) - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and server.ranges:
            first, last, status = int(wanted[1]), min(int(wanted[2] or last), last), 206
        if action == "short":  # an answer that is whole by its own words, and ends too early
            last = first + (last - first) // 2
        self.send_response(status)
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        for header, value in server.says.items():
            self.send_header(header, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if not body:
            return
        part = content[first : last + 1]
        server.sent += len(part)
        server.asked += 1
        if action == "drop":
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if server.dies_after is not None and server.sent > server.dies_after:
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(part)


@pytest.fixture(autouse=True)
def patience(monkeypatch) -> remote.Patience:
    """The rule, without the waits."""
    quick = remote.Patience(first=0.001, longest=0.002, total=0.2, loud=0.05)
    monkeypatch.setattr(remote, "PATIENCE", quick)
    return quick


@pytest.fixture
def server(tmp_path) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        one.daemon_threads = True
        one.folder, one.status, one.ranges, one.dies_after, one.sent = tmp_path / "served", 0, True, None, 0
        one.says, one.statuses, one.script, one.asked = {}, {}, [], 0
        one.folder.mkdir()
        one.url = f"http://127.0.0.1:{one.server_address[1]}"
        thread = threading.Thread(target=functools.partial(one.serve_forever, poll_interval=0.02))
        thread.start()
        # fsspec remembers its connections by their options, not by the server that is gone
        fsspec.filesystem("http").clear_instance_cache()
        yield one
        one.shutdown()
        thread.join()


def count(events):
    return {"n": len(events)}


def serve(server, path: Path) -> str:
    (server.folder / path.name).write_bytes(path.read_bytes())
    return f"{server.url}/{path.name}"


def complaint(url, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        run({"a": url}, count, **kwargs)
    text = str(caught.value)
    assert text.startswith(url)
    assert "\n" not in text
    return text


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_every_kind_gives_the_same_bytes_as_from_disk(server, samples, tmp_path, kind):
    dijets = load_processor("processors/dijets.py:Dijets", [ROOT])
    found = []
    for source in (samples[kind], serve(server, samples[kind])):
        out, report = run({"a": source}, dijets(SETTINGS), chunksize=1000)
        write_skim(tmp_path / "a.parquet", out["skim"].columns())
        found.append((out["hists"], out["cutflow"], (tmp_path / "a.parquet").read_bytes(), report.processed))
    assert found[1][1:] == found[0][1:]
    assert all(found[1][0][name] == one for name, one in found[0][0].items())


def test_workers_read_urls(server, samples, warm_workers):
    _, report = run({"a": serve(server, samples["rntuple"])}, count, executor="futures", workers=2, chunksize=1500)
    assert report.processed == 3000


def test_only_what_is_needed_is_read(server, tmp_path):
    """A scan of a large file asks for its header and its directory."""
    write_feature_root(tmp_path / "big.root", make_columns(100_000), compression=None, step=5000)
    url = serve(server, tmp_path / "big.root")
    scan(url)
    assert 0 < server.sent < (tmp_path / "big.root").stat().st_size / 10


def test_no_garbage_is_collected_while_h5py_waits_for_bytes(samples, monkeypatch):
    """The thread that fetches them would wait for h5py's lock, if it had to free one of its objects."""
    states, plain = [], remote._Exact.read

    def read(file, *size):
        states.append(gc.isenabled())
        return plain(file, *size)

    monkeypatch.setattr(remote._Exact, "read", read)
    with open_hdf5(samples["hdf5"].as_uri()) as (file, _):
        assert file["df/block0_values"][:].size > 0
    assert set(states) == {False}
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_readers_in_several_threads_leave_the_collector_as_it_was(enabled):
    found = []

    def inside(wait):
        with hdf5_files._PAUSED:
            wait.wait(10)
            found.append(gc.isenabled())

    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        waits = [threading.Event() for _ in range(2)]
        threads = [threading.Thread(target=inside, args=(wait,)) for wait in waits]
        for thread in threads:
            thread.start()
        for wait, thread in zip(waits, threads, strict=True):
            wait.set()
            thread.join()
        assert found == [False, False]
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_a_query_is_no_part_of_the_name(server, samples):
    url = serve(server, samples["ttree"])
    assert file_key(url + "?token=a.b/c") == file_key(url) == file_key(str(samples["ttree"]))
    _, report = run({"a": url + "?token=abc"}, count)
    assert report.processed == 3000


def test_fingerprints(server, tmp_path):
    path = tmp_path / "a.bin"
    content = np.random.default_rng(1).integers(0, 256, 300_000).astype(np.uint8)
    prints = []
    for place in (None, 10, len(content) - 10):
        changed = content.copy()
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed.tobytes())
        prints.append(fingerprint(serve(server, path)))
    path.write_bytes(content.tobytes())
    assert len(set(prints)) == 3
    assert fingerprint(serve(server, path)) == prints[0]
    assert prints[0].startswith("blocks:")
    path.write_bytes(content.tobytes()[:100_000] + content.tobytes()[100_001:])
    assert fingerprint(serve(server, path)) not in prints


LARGE = 16 << 20
"""Bytes; blocks of the sample are 0.5 MiB apart."""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Zeros: sparse, and hashed in no time."""
    path = tmp_path_factory.mktemp("large") / "a.bin"
    with path.open("wb") as stream:
        stream.truncate(LARGE)
    return path


def change(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def assert_noticed(url, path, place):
    fsspec.filesystem("http").invalidate_cache()
    before = fingerprint(url)
    change(path, place)
    assert fingerprint(url) != before


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("ETag", '"a"', '"b"'),
        ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:01 GMT"),
        ("Content-MD5", "YQ==", "Yg=="),
    ],
)
def test_what_the_server_says_of_the_content_counts(server, tmp_path, header, first, second):
    """The middle of a contiguous HDF5 file can change without its ends."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(300_000))
    url = serve(server, path)
    server.says = {header: first}
    before = fingerprint(url)
    assert before.startswith("ends:")
    assert fingerprint(url) == before
    change(server.folder / "a.bin", 150_000)
    server.says = {header: second}
    assert fingerprint(url) != before


def test_blocks_through_the_file_count_where_the_server_says_nothing(server, large):
    url = serve(server, large)
    server.sent = 0
    fingerprint(url)
    assert server.sent < 34 * (3 << 16)
    assert_noticed(url, server.folder / "a.bin", (LARGE - (1 << 16)) * 17 // 33 + 5)


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 131_073, 1_000_000, 34 << 16])
def test_all_of_a_small_file_counts(server, tmp_path, size):
    (tmp_path / "a.bin").write_bytes(bytes(size))
    url = serve(server, tmp_path / "a.bin")
    for place in {0, size // 3, size // 2, size - 1}:
        assert_noticed(url, server.folder / "a.bin", place)


def test_files_that_cost_nothing_are_hashed_in_full(large, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(large.read_bytes())
    before = fingerprint(path.as_uri())
    assert before == fingerprint(path)
    files = fsspec.filesystem("memory")
    files.pipe("/fingerprints/a.bin", path.read_bytes())
    try:
        assert fingerprint("memory://fingerprints/a.bin") == before
        change(path, 1 << 20)
        files.pipe("/fingerprints/a.bin", path.read_bytes())
        assert fingerprint("memory://fingerprints/a.bin") == fingerprint(path.as_uri()) == fingerprint(path) != before
    finally:
        files.rm("/fingerprints", recursive=True)


def test_small_files_have_fingerprints(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"few")
    (tmp_path / "b.bin").write_bytes(b"fee")
    assert fingerprint(serve(server, tmp_path / "a.bin")) != fingerprint(serve(server, tmp_path / "b.bin"))


SEARCH = """
name: urls
data: {path: [URL]}
selection: {leading_pt: 1200}
mass: {range: [2000, 8000]}
"""


def skim_of(server, folder, *urls):
    """The stage, and its record in the manifest."""
    (folder / "a.yaml").write_text(SEARCH.replace("URL", ", ".join(urls)))
    config = load_config(folder / "a.yaml")
    context = Context.of(config, open_run(folder / "run"), device="cpu", workers=1)
    skim(context)
    return read_json(context.run.manifest), (folder / "run" / "stages" / "skim.json").stat().st_mtime_ns


def test_the_stage_is_done_once_unless_the_file_changes(server, samples, tmp_path):
    url = serve(server, samples["ttree"])
    manifest, first = skim_of(server, tmp_path, url)
    assert manifest["inputs"] == {url: fingerprint(url)}
    assert skim_of(server, tmp_path, url)[1] == first
    write_feature_root(server.folder / "events.root", make_columns(2500))
    fsspec.filesystem("http").invalidate_cache()
    manifest, second = skim_of(server, tmp_path, url)
    assert second != first
    assert manifest["inputs"] == {url: fingerprint(url)}


def test_one_file_under_two_addresses(server, samples, tmp_path):
    first = serve(server, samples["ttree"])
    (server.folder / "other.root").write_bytes(samples["ttree"].read_bytes())
    with pytest.raises(InputError, match="is identical to"):
        skim_of(server, tmp_path, first, f"{server.url}/other.root")


# ---- labels beside raw files -----------------------------------------------------------------------------------------


@pytest.fixture
def raw(server, tmp_path) -> str:
    """URL of four raw events, and of their labels: 0, 1, 2, 0."""
    table = np.tile([1500.0, 0.1, 0.2, 1400.0, -0.1, -3.0], (4, 1))
    write_raw_hdf5(tmp_path / "box.h5", [table], 4, 6)
    (tmp_path / "box.masterkey").write_text("0\n1\n2\n0\n")
    serve(server, tmp_path / "box.masterkey")
    return serve(server, tmp_path / "box.h5")


@pytest.mark.parametrize("query", ["", "?token=a/b.c"])
def test_labels_beside_a_url(server, raw, query):
    info = scan(raw + query)
    assert info.has_labels
    assert info.companions == (f"{server.url}/box.masterkey{query}",)
    (chunk,) = split(info)
    assert read(chunk).label.tolist() == [0, 1, 1, 0]


def test_without_labels_beside_a_url(server, raw):
    (server.folder / "box.masterkey").unlink()
    assert not scan(raw).has_labels


@pytest.mark.parametrize(("status", "words"), [(403, "the server denies access"), (503, "responds with status 503")])
def test_labels_that_the_server_keeps_are_an_error(server, raw, status, words):
    """Not an unlabelled file: labels must not come and go with the network."""
    server.statuses["box.masterkey"] = status
    with pytest.raises(InputError, match=rf"box\.masterkey: .*{words}"):
        scan(raw)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x.org/a/b.c.h5?d=e/f.g#h", "https://x.org/a/b.c.masterkey?d=e/f.g#h"),
        ("root://x.org//store/b.h5", "root://x.org//store/b.masterkey"),
        ("memory://b.h5", "memory://b.masterkey"),
        ("memory:///b", "memory:///b.masterkey"),
        ("simplecache::https://x.org/b.h5", "simplecache::https://x.org/b.masterkey"),
    ],
)
def test_siblings_of_urls(url, expected):
    assert sibling(url, ".masterkey") == expected


# ---- patterns --------------------------------------------------------------------------------------------------------


def test_web_addresses_are_no_patterns():
    assert expand("https://x.org/a*.root?b=[1]") == ["https://x.org/a*.root?b=[1]"]


def test_patterns_where_files_can_be_listed(samples):
    files = fsspec.filesystem("memory")
    for name in ("b.root", "a.root", "c.h5"):
        files.pipe(f"/events/{name}", samples["ttree"].read_bytes())
    try:
        found = expand("memory://events/*.root")
        assert [Path(one).name for one in found] == ["a.root", "b.root"]
        assert scan(found[0]).entries == 3000
        with pytest.raises(InputError, match="no file matches this pattern"):
            expand("memory://events/*.parquet")
    finally:
        files.rm("/events", recursive=True)


def test_xrootd_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    for ask in (lambda: expand("root://x.org//a/*.root"), lambda: scan("root://x.org//a/b.root")):
        with pytest.raises(
            InputError, match=r"needs XRootD, which is not installed; pip install 'drapes-hep\[xrootd\]'"
        ):
            ask()


def test_unknown_scheme():
    assert "'nope://' cannot be opened" in complaint("nope://x.org/a.root")


# ---- servers ---------------------------------------------------------------------------------------------------------


def test_missing(server):
    assert "no such file on the server; check the address" in complaint(f"{server.url}/nothing.root")


@pytest.mark.parametrize(("status", "words"), [(403, "the server denies access"), (401, "the server denies access")])
def test_refused(server, samples, status, words):
    url = serve(server, samples["ttree"])
    server.status = status
    assert words in complaint(url)


def test_server_error(server, samples):
    url = serve(server, samples["ttree"])
    server.status = 503
    assert "the server responds with status 503" in complaint(url)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "the server cannot be reached" in complaint(f"http://127.0.0.1:{port}/a.root")


@pytest.mark.parametrize("name", ["a.root", "a.h5", "a.parquet"])
def test_a_web_page(server, tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><html><body>Please log in</body></html>")
    assert "is a web page, not a file of events" in complaint(serve(server, tmp_path / name))


def test_an_empty_file(server, tmp_path):
    (tmp_path / "a.root").write_bytes(b"")
    assert "is empty" in complaint(serve(server, tmp_path / "a.root"))


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_no_parts(server, samples, kind):
    """A server that ignores ranges must not pass for one that serves another file."""
    url = serve(server, samples[kind])
    server.ranges = False
    assert "the server does not support reading parts of files" in complaint(url)


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_truncated(server, samples, tmp_path, kind):
    path = tmp_path / samples[kind].name
    path.write_bytes(samples[kind].read_bytes()[: samples[kind].stat().st_size * 7 // 10])
    text = complaint(serve(server, path))
    assert any(words in text for words in ("truncated", "cannot be read"))


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_dies_midway(server, samples, kind):
    url = serve(server, samples[kind])
    scan(url)
    server.dies_after = server.sent + samples[kind].stat().st_size // 4
    text = complaint(url, chunksize=200)
    assert "the server cannot be reached or closed the connection" in text


def test_causes_are_looked_at():
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = ConnectionResetError()
    assert "closed the connection (ConnectionResetError)" in str(network_error("http://x.org/a.root", wrapped))
    assert network_error("/a.root", wrapped) is None
    assert network_error("http://x.org/a.root", ValueError("of ours")) is None
    assert is_url("root://x//y")
    assert not is_url("/x//y")


# ---- trying again ----------------------------------------------------------------------------------------------------

KINDS = ["ttree", "rntuple", "hdf5", "skim"]


def summed(events):
    """A number that changes with every value."""
    return {"n": len(events), "pt": float(np.sum(np.asarray(events.jets.pt[:, 0])))}


@pytest.mark.parametrize("action", [("status", 503), ("status", 429), ("drop", 0), ("short", 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_tried_again(server, samples, kind, action):
    """At every request of the run in turn: the same numbers as from disk."""
    expected, _ = run({"a": samples[kind]}, summed)
    url = serve(server, samples[kind])
    run({"a": url}, summed)
    for request in range(0, server.asked, max(1, server.asked // 2)):
        server.script = [("", 0)] * request + [action]
        assert run({"a": url}, summed)[0] == expected


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_does_not_pass_is_asked_once(server, samples, status):
    url = serve(server, samples["ttree"])
    server.status = status
    calls = []

    def once():
        calls.append(1)
        with remote.open_url(url) as file:
            return file.read(1)

    with pytest.raises(InputError) as caught:
        retried(once)
    assert not isinstance(caught.value, UnreachableError)
    assert len(calls) == 1


def failing(times, error=None):
    """A call that fails some times, and the list of its calls."""
    calls = []

    def call():
        calls.append(1)
        if len(calls) <= times:
            raise error or UnreachableError("http://x.org/a", "is busy", "wait")
        return len(calls)

    return call, calls


def test_attempts_are_bounded_and_counted(patience):
    call, calls = failing(100)
    with pytest.raises(UnreachableError, match=r"is busy \(6 attempts in 0 s\)"):
        retried(call)
    assert len(calls) == patience.attempts
    assert retried(failing(5)[0]) == 6


def test_all_waits_together_are_bounded(monkeypatch):
    waits = []
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(attempts=1000, first=1, longest=8, total=50))
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    with pytest.raises(UnreachableError):
        retried(failing(1000)[0])
    assert 42 <= sum(waits) <= 50
    for wait, longest in zip(waits, [1, 2, 4, 8, 8, 8], strict=False):
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == len(waits)


def test_a_server_says_when_to_come_back(monkeypatch):
    waits = []
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience())
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    busy = UnreachableError("http://x.org/a", "is busy", "wait")
    busy.wait = 40.0
    retried(failing(1, busy)[0])
    assert waits == [40.0]
    busy.wait = 3600.0
    with pytest.raises(UnreachableError, match="1 attempt in 0 s, it asks to wait 3600 s"):
        retried(failing(1, busy)[0])


def test_when_to_come_back_is_read_from_the_answer(server, samples):
    url = serve(server, samples["ttree"])
    server.says, server.script = {"Retry-After": "7"}, [("status", 503)]
    with pytest.raises(UnreachableError) as caught, remote.open_url(url) as file:
        file.read(1)
    assert caught.value.wait == 7.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("120", 120), ("0", 0), ("", None), ("soon", None), ("-5", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_forms_of_retry_after(text, expected):
    assert retry_after({"Retry-After": text}) == expected


def test_long_waits_are_announced_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(first=10, longest=10))
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    retried(failing(1)[0])
    (record,) = caplog.records
    assert re.fullmatch(r"http://x.org/a: is busy; attempt 2 of 6 in \d+ s", record.getMessage())


def test_waits_leave_seeded_generators_alone():
    import random

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  the global one must not be touched
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    retried(failing(3)[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_between_attempts_is_an_error(server, samples, tmp_path, kind):
    """Not a mix of two: the second attempt would read a file of the same length and other numbers."""
    url = serve(server, samples[kind])
    server.says = {"ETag": '"first"'}
    info = scan(url)

    def other():
        server.says = {"ETag": '"second"'}

    server.script = [("call", other), ("drop", 0)]
    (chunk,) = split(info)
    with pytest.raises(InputError, match="changed on the server while it was read"):
        read(chunk)


def test_fingerprints_are_tried_again(server, samples):
    url = serve(server, samples["ttree"])
    expected = fingerprint(url)
    server.script = [("drop", 0), ("status", 502)]
    assert fingerprint(url) == expected


def test_labels_beside_are_tried_again(server, raw):
    server.script = [("", 0), ("", 0), ("status", 503)]
    assert scan(raw).has_labels


def test_a_silent_server_is_left(server, samples, monkeypatch):
    monkeypatch.setattr(remote, "_SILENCE", 0.1)
    expected, _ = run({"a": samples["ttree"]}, summed)
    url = serve(server, samples["ttree"])
    server.script = [("sleep", 0.4)]
    assert run({"a": url}, summed)[0] == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[ERROR] Server responded with an error: [3011] No such file or directory", remote.NotThereError),
        ("[ERROR] Server responded with an error: [3010] permission denied", InputError),
        ("[ERROR] Server responded with an error: [3012] Internal timeout", UnreachableError),
        ("[ERROR] Operation expired", UnreachableError),
        ("[FATAL] Connection error", UnreachableError),
        ("[ERROR] Invalid arguments", None),
    ],
)
def test_what_xrootd_says(text, kind):
    told = network_error("root://x.org//a.root", OSError(f"File did not open properly: {text}"))
    assert type(told) is (type(None) if kind is None else kind)


# ---- several places of one file --------------------------------------------------------------------------------------


def two_sites(server, path):
    """The same file in two folders of the server, and on the disk."""
    for site in ("one", "two"):
        (server.folder / site).mkdir(exist_ok=True)
        (server.folder / site / path.name).write_bytes(path.read_bytes())
    return [f"{server.url}/one/{path.name}", f"{server.url}/two/{path.name}", str(path)]


def identified(events):
    return {"n": len(events), "ids": {int(np.sum(np.asarray(events.event_id) % 1000003))}, **summed(events)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [503, 404, 403])
def test_another_place_serves_the_same_events(server, samples, kind, status):
    expected, _ = run({"a": samples[kind]}, identified)
    places = two_sites(server, samples[kind])
    server.statuses[f"one/{samples[kind].name}"] = status
    (source,) = expand([places[:2]])
    out, report = run({"a": [source]}, identified)
    assert out == expected
    assert [one.path for one in report.files] == places[:1]


def test_a_place_that_breaks_off_midway_is_left_for_the_next(server, samples):
    expected, _ = run({"a": samples["ttree"]}, identified)
    places = two_sites(server, samples["ttree"])
    (source,) = expand([places])
    info = scan(source)
    assert [place for place, _ in info.places] == places
    server.statuses[f"one/{samples['ttree'].name}"] = server.statuses[f"two/{samples['ttree'].name}"] = 500
    (chunk,) = split(info, "a")
    assert identified(read(chunk)) == expected
    assert read(chunk).metadata["filename"] == places[0]


def test_places_with_other_content_are_refused(server, samples, tmp_path):
    places = two_sites(server, samples["hdf5"])
    columns = make_columns()
    columns["mj1"][7] += 1
    from drapes_hep.events.formats.writers import write_feature_hdf5

    write_feature_hdf5(server.folder / "two" / "events.h5", columns)
    with pytest.raises(InputError, match=f"two/events.h5: holds other content than {places[0]}"):
        run({"a": expand([places[:2]])}, count)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (["a/x.root", "b/y.root"], "b/y.root: has another name than a/x.root"),
        (["a/*.root", "b/x.root"], r"a/\*.root: is a pattern among the places of one file"),
        ([], "an empty list in the list of files"),
    ],
)
def test_places_that_are_not_of_one_file(places, words):
    with pytest.raises(DrapesError, match=words):
        expand([places])


def test_when_all_places_fail_the_first_is_named(server, samples):
    places = two_sites(server, samples["ttree"])
    server.status = 503
    with pytest.raises(InputError) as caught:
        run({"a": expand([places[:2]])}, count)
    assert str(caught.value).startswith(f"{places[0]}: the server responds with status 503 (3 attempts in ")
    assert "and so did 1 other place" in str(caught.value)


def test_the_fingerprint_is_the_same_whatever_place_answers(server, samples):
    places = two_sites(server, samples["ttree"])
    server.says = {"ETag": '"of one site"'}
    found = {fingerprint(remote.Alternatives([one])) for one in places}
    server.statuses[f"one/{samples['ttree'].name}"] = 503
    assert found == {fingerprint(remote.Alternatives(places))}


def test_a_search_with_two_places_is_done_whichever_answers(server, samples, tmp_path):
    places = two_sites(server, samples["ttree"])[:2]
    _, first = skim_of(server, tmp_path, f"[{', '.join(places)}]")
    server.statuses[f"one/{samples['ttree'].name}"] = 503
    manifest, second = skim_of(server, tmp_path, f"[{', '.join(places)}]")
    assert second == first
    assert list(manifest["inputs"]) == places[:1]


def test_an_answer_that_ends_too_early_is_no_content(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(200)))
    url = serve(server, tmp_path / "a.bin")
    server.script = [("short", 0)]
    with pytest.raises(UnreachableError, match="closed the connection"), remote.open_url(url) as file:
        file.read(150)


def test_a_local_address_is_on_no_server(tmp_path):
    assert f"{tmp_path}/nothing.root: no such file; check the address" in complaint(f"file://{tmp_path}/nothing.root")
