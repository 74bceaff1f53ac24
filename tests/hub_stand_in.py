"""A hub on this machine that the hub's own package talks to: listings, sizes, hashes, ranges, and faults on demand."""

import contextlib
import hashlib
import http.server
import json
import socket
import threading
import time
import urllib.parse
from collections import defaultdict
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """Serves folders as repositories.

    Attributes:
        repositories: path of a repository in addresses (``org/name`` of models, ``datasets/org/name``) to its folder.
        gated: repositories that ask for consent.
        cut: file name to the bytes after which its transfer fails, and those that follow it.
        damaged: file names that come with other bytes than announced.
        pause: seconds between pieces of a transfer.
        served: (file name, first byte, bytes sent) of each transfer.
    """

    def __init__(self):
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}
        self.damaged: set[str] = set()
        self.pause = 0.0
        self.served: list[tuple[str, int, int]] = []
        self.asked: dict[str, int] = defaultdict(int)

    def files(self, repository):
        """Return the names of the files of a repository with their contents."""
        folder = self.repositories[repository]
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
            hub.asked[self.command] += 1
            if path.startswith("api/"):
                self.api(path.removeprefix("api/").removeprefix("models/"))
            elif "/resolve/" in path:
                repository, _, rest = path.partition("/resolve/")
                self.file(repository, rest.partition("/")[2])
            else:
                self.answer(200, b"")

        def api(self, path):
            repository = "/".join(path.split("/")[: 3 if path.startswith("datasets/") else 2])
            if repository not in hub.repositories:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            what = path.removeprefix(repository).strip("/")
            files = hub.files(repository)
            if what.startswith("tree"):
                content = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in files.items()
                ]
            else:
                name = repository.removeprefix("datasets/")
                siblings = [{"rfilename": file} for file in files]
                content = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def file(self, repository, name):
            if repository in hub.gated:
                self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
                return
            file = hub.files(repository).get(name) if repository in hub.repositories else None
            if file is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            content = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if name in hub.damaged:
                content = content[:-1] + bytes([content[-1] ^ 1])
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            status = 200
            if self.headers.get("Range"):
                status, headers["Content-Range"] = 206, f"bytes {first}-{len(content) - 1}/{len(content)}"
            if name in hub.cut and self.command == "GET" and first >= hub.cut[name]:
                self.answer(500, b"")
                return
            self.send(status, content[first:], headers, name, first)

        def send(self, status, content, headers, name, first):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            sent = 0
            end = max(hub.cut[name] - first, 0) if name in hub.cut else len(content)
            with contextlib.suppress(ConnectionError):
                while sent < end:
                    piece = content[sent : min(sent + 4096, end)]
                    self.wfile.write(piece)
                    sent += len(piece)
                    time.sleep(hub.pause)
            hub.served.append((name, first, sent))
            self.close_connection = self.close_connection or end < len(content)

        def answer(self, status, content, headers=None):
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


@contextlib.contextmanager
def serving(hub):
    """Serve ``hub`` in the block; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # whoever asked was killed
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silent():
    """Accept connections in the block and never answer, as behind a firewall that drops packets; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts what nobody takes
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
