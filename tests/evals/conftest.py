"""What tests share: of the code grader whether code can be run, and a data set; and a server."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from adaptsft.errors import ConfigError
from adaptsft.evals.code import sandbox
from tests.evals.odd_server import Server

try:
    sandbox.isolation()
    WHY_NOT = ""
except ConfigError as error:
    WHY_NOT = str(error)
executes = pytest.mark.skipif(bool(WHY_NOT), reason=f"nothing isolates here: {WHY_NOT}")

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return [2 * x]\n",
    "entry_point": "double",
    "base_input": [[1], [2]],
    "plus_input": [[-1], [0.5]],
    "atol": 0,
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data set of one problem, in two versions. The newer one is not the last by name."""
    for version in ("v9.9.9", "v9.9.10"):
        (tmp_path / f"HumanEvalPlus-{version}.jsonl.gz").write_bytes(
            gzip.compress(json.dumps(DOUBLE).encode())
        )
    return tmp_path


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Server.replies, Server.asked = {}, []
    monkeypatch.setattr("adaptsft.evals.backends.http.time.sleep", lambda seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
