"""A stand-in for the Hugging Face hub: what huggingface_hub asks of its HTTP interface to make a
repository and to commit files to it, through LFS where they are large. It keeps what it is sent."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READ_TOKEN = "hf_writes", "hf_reads"
LFS = (".safetensors",)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, Any]] = {}  # name: what it was created with
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}  # (name, branch): path: content
        self.objects: dict[str, bytes] = {}  # LFS
        self.commits: list[str] = []
        self.foreign = {"ann/others"}  # exists, and may not be written to
        self.refuses_commits = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = b""
        while size := int(self.rfile.readline(), 16):
            parts += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return parts

    def _answer(self, code: int, content: Any = None, error: str = "") -> None:
        body = json.dumps({} if content is None else content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(body)

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            self._who()
        elif path.endswith("/auth-check/write"):
            name = path.removeprefix("/api/models/").removesuffix("/auth-check/write")
            if name in self.server.foreign:
                self._answer(403)
            elif name in self.server.repositories:
                self._answer(200)
            else:
                self._answer(404, error="RepoNotFound")
        else:
            self._answer(404)

    def _who(self) -> None:
        if self._token not in (TOKEN, READ_TOKEN):
            return self._answer(401)
        role = "write" if self._token == TOKEN else "read"
        orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]
        auth = {"accessToken": {"role": role, "displayName": "mine"}}
        return self._answer(200, {"name": "ann", "orgs": orgs, "auth": auth})

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.removeprefix("/objects/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self._answer(200)

    def do_POST(self) -> None:
        path, body = self.path.split("?")[0], self._body()
        if self._token != TOKEN and path != "/api/validate-yaml":
            return self._answer(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            found = name in self.server.repositories
            if not found:
                self.server.repositories[name] = asked
            return self._answer(409 if found else 200, {"url": f"{self.server.url}/{name}"})
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return self._answer(200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                thing
                | {"actions": {"upload": {"href": f"{self.server.url}/objects/{thing['oid']}"}}}
                for thing in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        words = path.removeprefix("/api/models/").split("/")
        name, action, branch = "/".join(words[:2]), words[2], words[3]
        if action == "branch":
            self.server.files[name, branch] = {}
            return self._answer(200)
        if action == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {
                    "path": file,
                    "uploadMode": "lfs" if file.endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in asked
            ]
            return self._answer(200, {"files": modes})
        assert action == "commit"
        if self.server.refuses_commits:
            return self._answer(403)
        files = self.server.files.setdefault((name, branch), {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{'0' * 40}"
        return self._answer(200, {"commitUrl": url, "commitOid": "0" * 40})


@contextmanager
def serve() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        hub.shutdown()
