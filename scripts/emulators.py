"""Buckets that are there: Google's and Amazon's storage as emulators, with faults on the way.

Clients talk to a `Gate`, which passes requests on to the emulator, or answers itself where the test
says so. It also does what gcp-storage-emulator leaves out: `ifGenerationMatch=0`, an object that is
created only where none is; and the last byte of an object, where that is a carriage return, which
the emulator takes for a part of the line end after it.
"""

import contextlib
import dataclasses
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMANDS = {
    "gs": ["gcp_storage_emulator", "start", "--host=127.0.0.1", "--in-memory", "--port={}"],
    "s3": ["moto.server", "-H", "127.0.0.1", "-p", "{}"],
}
_AMAZON = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclasses.dataclass
class Fault:
    """What happens to requests whose "METHOD /path?query", or beginning, matches `pattern`.

    The first fault that has `times` left counts. Google's clients name an object in what they send.
    """

    pattern: str
    times: float = float("inf")
    status: int | None = None
    """The answer; None passes the request on."""
    delay: float = 0.0
    cut: bool = False
    """The connection ends where the answer should come; the emulator never sees the request."""


class Gate:
    """A server between clients and the emulator at a port."""

    def __init__(self, emulator: int):
        self.faults: list[Fault] = []
        self.seen: list[str] = []
        self._creating = threading.Lock()
        self._emulator = emulator
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _do(self) -> None:
                gate.answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _do

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def names(self, below: str) -> list[str]:
        """The names of up to 1000 objects in `bucket` of Amazon's emulator, past all faults."""
        content = self._request("GET", f"/bucket?list-type=2&prefix={below}", {}, b"")[2]
        return re.findall(r"<Key>([^<]*)</Key>", content.decode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = _body(request).replace(b"\n--==0==--", b"\r\n--==0==--")  # gcsfs's own boundary
        line = f"{request.command} {request.path}"
        beginning = f"{line}\n{body[:500].decode('latin1')}"
        self.seen.append(line)
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, beginning):
                fault.times -= 1
                time.sleep(fault.delay)
                if fault.cut:
                    request.close_connection = True
                    return
                if fault.status:
                    _send(request, fault.status, {}, _error(fault.status))
                    return
                break
        if "ifGenerationMatch=0" not in request.path:
            _send(request, *self._pass_on(request, body))
            return
        with self._creating:
            name = re.search(
                r'[?&]name=([^&]+)|"name": *"([^"]+)"', request.path + body.decode("latin1")
            )
            assert name
            bucket = re.search(r"/b/([^/]+)/o", request.path)
            assert bucket
            named = (name[1] or name[2]).replace("/", "%2F")
            there = self._request("GET", f"/storage/v1/b/{bucket[1]}/o/{named}", {}, b"")[0]
            if there == 200:
                _send(request, 412, {}, _error(412))
            else:
                _send(request, *self._pass_on(request, body))

    def _pass_on(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"}
        return self._request(request.command, request.path, headers, body)

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._emulator)
        try:
            connection.request(
                method, path, body or None, {**headers, "Content-Length": str(len(body))}
            )
            response = connection.getresponse()
            content = response.read()
            return response.status, dict(response.getheaders()), content
        finally:
            connection.close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def _send(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes
) -> None:
    request.send_response(status)
    length = str(len(content))
    for name, value in headers.items():
        if request.command == "HEAD" and name.lower() == "content-length":
            length = value
        if name.lower() not in (
            "content-length",
            "transfer-encoding",
            "connection",
            "server",
            "date",
        ):
            request.send_header(name, value)
    request.send_header("Content-Length", length)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _error(status: int) -> bytes:
    return f'{{"error": {{"code": {status}, "message": "as the test wants it"}}}}'.encode()


@contextlib.contextmanager
def emulator(scheme: str, log: Path) -> Iterator[tuple[Gate, dict[str, str]]]:
    """An emulator with an empty bucket `bucket`, and what clients need in their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *(part.format(port) for part in COMMANDS[scheme])]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            assert process.poll() is None, log.read_text()
            gate = Gate(port)
            try:
                status = _make_bucket(gate, scheme)
                assert status == 200, status
                yield gate, environment(scheme, gate.url)
            finally:
                gate.close()
        finally:
            process.terminate()


def _make_bucket(gate: Gate, scheme: str) -> int:
    if scheme == "s3":
        return gate._request("PUT", "/bucket", {}, b"")[0]
    headers = {"Content-Type": "application/json"}
    return gate._request("POST", "/storage/v1/b?project=p", headers, b'{"name": "bucket"}')[0]


def environment(scheme: str, url: str) -> dict[str, str]:
    return (
        {"AWS_ENDPOINT_URL": url, **_AMAZON} if scheme == "s3" else {"STORAGE_EMULATOR_HOST": url}
    )


def with_environment(extra: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **extra}
