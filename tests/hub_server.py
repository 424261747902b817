"""A stand-in for the Hugging Face Hub: what is asked to upload, list and download."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


class Hub:
    """Repositories by name, each {file: bytes}; and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.endpoint = ""

    def commit_of(self, repo: str) -> str:
        """A hash of all that it holds."""
        content = sorted((n, hashlib.sha1(b).hexdigest()) for n, b in self.repos[repo].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        self._file(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else self._chunks()
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.hub.asked.append(f"POST {self.path}")
        if parts[:2] == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if parts == ["api", "repos", "create"]:
            said = json.loads(body)
            name = f"{said.get('organization') or 'user'}/{said['name']}"
            self.hub.repos.setdefault(name, {})
            return self._json({"url": f"{self.hub.endpoint}/{name}"})
        repo, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = json.loads(body)["files"]
            kinds = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._json({"files": kinds})
        for line in body.splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                content = base64.b64decode(said["value"]["content"])
                self.hub.repos[repo][said["value"]["path"]] = content
        oid = self.hub.commit_of(repo)
        url = f"{self.hub.endpoint}/{repo}/commit/{oid}"
        return self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _file(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.hub.asked.append(f"{self.command} {self.path}")
        if parts[0] == "api":
            return self._info("/".join(parts[2:4]))
        repo, file = "/".join(parts[:2]), "/".join(parts[4:])
        if repo not in self.hub.repos:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound", body)
        if parts[3] not in ("main", self.hub.commit_of(repo)):
            return self._json({"error": "Invalid rev id"}, 404, "RevisionNotFound", body)
        content = self.hub.repos[repo].get(file)
        if content is None:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound", body, repo)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit_of(repo))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _info(self, repo: str) -> None:
        if repo not in self.hub.repos:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        files = [{"rfilename": name} for name in self.hub.repos[repo]]
        return self._json({"id": repo, "sha": self.hub.commit_of(repo), "siblings": files})

    def _json(
        self, said: Any, code: int = 200, error: str = "", body: bool = True, repo: str = ""
    ) -> None:
        content = json.dumps(said).encode()
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        if repo:
            self.send_header("X-Repo-Commit", self.hub.commit_of(repo))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A Hub on this machine, until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
