"""Files on a web server (a real one, on this machine): listed, copied, and every way in which that
goes wrong."""

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.implementations.http import HTTPFileSystem

from adaptsft.config.schema import DataConfig
from adaptsft.data import remote
from adaptsft.data.remote import copy_of, fetched, list_remote
from adaptsft.data.shards import Shard
from adaptsft.data.tokenized import open_data
from adaptsft.errors import DataError
from adaptsft.model.tiny import bpe_tokenizer


class Handler(http.server.SimpleHTTPRequestHandler):
    """`faults` of the server: path -> what the next GETs of it meet, one after the other; then the
    file, as it is."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        waiting = self.server.faults.get(self.path)
        fault = waiting.pop(0) if waiting else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault is None:
            super().do_GET()
        else:
            # half of the file, then nothing for so many seconds, then the other half, or the end of
            # the connection
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.over.wait(fault.get("pause", 0.0))
            if not fault.get("cut"):
                self.wfile.write(content[len(content) // 2 :])

    def log_message(self, *arguments) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.faults: dict[str, list] = {}
        self.asked: list[str] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:  # a client that has gone
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    HTTPFileSystem.clear_instance_cache()  # with its connections, and their limits
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        yield server


def put(folder: Path, name: str, *ids: str) -> None:
    lines = [json.dumps({"id": name, "prompt": "a", "completion": "b" * 50}) + "\n" for name in ids]
    (folder / "served" / name).write_text("".join(lines))


CUT = {"cut": True}


def test_files_are_listed_by_pattern_and_by_name(server, tmp_path):
    put(tmp_path, "a.jsonl", "1")
    put(tmp_path, "b.jsonl", "2")
    put(tmp_path, "b.csv", "3")
    assert list_remote(f"{server.url}/*.jsonl") == [
        f"{server.url}/a.jsonl",
        f"{server.url}/b.jsonl",
    ]
    assert list_remote(f"{server.url}/b.jsonl") == [f"{server.url}/b.jsonl"]
    with_query = f"{server.url}/b.jsonl?download=true"
    assert list_remote(with_query) == [with_query]
    assert copy_of(with_query, tmp_path).suffix == ".jsonl"


def test_what_cannot_be_listed_is_an_error_with_its_reason(server):
    for path, message in (
        ("/c.jsonl", r"/c\.jsonl: cannot be read: 404"),
        ("/*.csv", r"/\*\.csv: no file matches this pattern"),
        ("/none/*.csv", r"/none/\*\.csv: no file matches this pattern"),
    ):
        with pytest.raises(DataError, match=message):
            list_remote(server.url + path)
    server.shutdown()
    server.server_close()
    for path in ("/a.jsonl", "/*.jsonl"):
        with pytest.raises(
            DataError, match=r"jsonl: cannot be read: Cannot connect to host 127\.0\.0\.1"
        ):
            list_remote(server.url + path)
    with pytest.raises(
        DataError, match=r"memory://c\.jsonl: cannot be read: there is no such file"
    ):
        list_remote("memory://c.jsonl")


def test_a_transfer_that_breaks_off_is_tried_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    put(tmp_path, "a.jsonl", "1", "2")
    server.faults["/a.jsonl"] = [CUT, 503]
    lines: list[str] = []
    with fetched(f"{server.url}/a.jsonl", tmp_path / "cache", lines.append):
        copy = copy_of(f"{server.url}/a.jsonl", tmp_path / "cache")
        assert copy.read_bytes() == (tmp_path / "served" / "a.jsonl").read_bytes()
    assert len(lines) == 3 and "not completed" in lines[1]
    assert "503" in lines[2] and lines[2].endswith("again in 0 s")


@pytest.mark.parametrize(
    ("faults", "requests", "message"),
    [
        ([CUT] * 3, 3, "Response payload is not completed"),
        ([500] * 3, 3, "500, "),
        ([404] * 3, 1, "there is no such file"),
        ([403], 1, "403, "),
    ],
)
def test_what_stays_broken_is_an_error_and_leaves_nothing(
    server, tmp_path, monkeypatch, faults, requests, message
):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    put(tmp_path, "a.jsonl", "1", "2")
    server.faults["/a.jsonl"] = list(faults)
    with (
        pytest.raises(DataError, match=rf"{server.url}/a\.jsonl: cannot be read: {message}"),
        fetched(f"{server.url}/a.jsonl", tmp_path / "cache", print),
    ):
        pass
    assert server.asked == ["/a.jsonl"] * requests
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_server_that_stalls_is_given_up_and_a_slow_one_is_not(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", ())
    monkeypatch.setattr(remote, "STALLED", 0.3)
    monkeypatch.setattr(remote, "PROGRESS_EVERY", 0.05)
    put(tmp_path, "a.jsonl", "1", "2")
    server.faults["/a.jsonl"] = [{"pause": 0.2}, {"pause": 20.0}]
    lines: list[str] = []
    with fetched(f"{server.url}/a.jsonl", tmp_path / "slow", lines.append):
        pass
    assert any(" MB" in line for line in lines[1:]), lines
    started = time.monotonic()
    with (
        pytest.raises(DataError, match=r"a\.jsonl: cannot be read: .*[Tt]imeout"),
        fetched(f"{server.url}/a.jsonl", tmp_path / "stalled", lines.append),
    ):
        pass
    assert time.monotonic() - started < 10


def test_remote_files_with_the_same_id_are_fetched_again_once_repaired(server, tmp_path):
    """Whichever of the two is repaired."""
    put(tmp_path, "a.jsonl", "1", "2")
    put(tmp_path, "b.jsonl", "3", "2")
    urls = list_remote(f"{server.url}/*.jsonl")
    config = DataConfig(path=f"{server.url}/*.jsonl", cache_dir=str(tmp_path / "cache"))
    config.fields = {"id": "id"}
    tokenizer = bpe_tokenizer([], 259)
    shard = Shard(0, 1, 0, urls, tmp_path / "shard", "")

    def opened():
        return open_data(config, tokenizer, 0, lambda line: None, shard=shard)[0]

    with pytest.raises(DataError, match=rf"^{urls[1]}:2: the id '2' is that of {urls[0]}:2 too"):
        opened()
    put(tmp_path, "a.jsonl", "1", "4")
    assert len(opened()) == 4
