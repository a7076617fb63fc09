"""A real S3 API on loopback, and a proxy before it that fails on demand.

moto's server runs as a process of its own; the proxy is a thread of the test. Faults are given as a list: each request
takes the next one, and when none is left requests pass untouched.
"""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

__all__ = ["CREDENTIALS", "FaultProxy", "fault_proxy", "moto_server"]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "planted-access-key", "AWS_SECRET_ACCESS_KEY": "planted-secret-key"}

Fault = Literal["pass", "slow down", "drop", "cut body", "not found", "expired", "forbidden", "trickle", "lose answer"]

_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message>'
    "<RequestId>0</RequestId></Error>"
)
_ANSWERS: dict[str, tuple[int, str, str]] = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "not found": (404, "NoSuchKey", "The specified key does not exist."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
}


@contextmanager
def moto_server() -> Generator[int]:
    """The port of an S3 server that lives as long as the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, "moto's server ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("moto's server did not come up.")


@dataclass
class FaultProxy:
    """What the proxy is to do, and what it saw."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    matching: Callable[[str, str], bool] = lambda method, path: True
    """Which requests (method, path) take a fault."""
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, *faults: Fault, matching: Callable[[str, str], bool] = lambda method, path: True) -> None:
        """Give the next matching requests these faults."""
        with self.lock:
            self.faults, self.matching = list(faults), matching
            self.seen.clear()

    def next_fault(self, method: str, path: str) -> Fault:
        with self.lock:
            fault = self.faults.pop(0) if self.faults and self.matching(method, path) else "pass"
            self.seen[fault] += 1
            return fault


@contextmanager
def fault_proxy(port: int) -> Generator[FaultProxy]:
    """A proxy before the server at `port`."""
    proxy = FaultProxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self._body()
            fault = proxy.next_fault(self.command, self.path)
            if fault in _ANSWERS:
                self._refuse(*_ANSWERS[fault])
            elif fault == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self._forward(body, fault)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(chunks)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _refuse(self, status: int, code: str, message: str) -> None:
            content = _XML.format(code=code, message=message).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _forward(self, body: bytes, fault: str) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            headers["Content-Length"] = str(len(body))
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if fault == "lose answer":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self._send(content, fault)

        def _send(self, content: bytes, fault: str) -> None:
            if fault == "cut body":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif fault == "trickle":
                for start in range(0, len(content), max(1, len(content) // 20)):
                    self.wfile.write(content[start : start + max(1, len(content) // 20)])
                    self.wfile.flush()
                    time.sleep(0.02)
            else:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client left
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="fault-proxy")
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
