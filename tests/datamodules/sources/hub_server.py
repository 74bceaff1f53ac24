"""A hub of one data set on this machine: the few answers that a download asks for."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "c0ff"


class Handler(BaseHTTPRequestHandler):
    """Serves the files below ``folder`` as the only commit of ``name``."""

    folder: Path
    name: str

    def do_GET(self):
        path = self.path.partition("?")[0]
        files = [one for one in sorted(self.folder.rglob("*")) if one.is_file()]
        if re.fullmatch(rf"/api/datasets/{self.name}(/revision/.+)?", path):
            self.answer({"id": self.name, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"/api/datasets/{self.name}/tree/"):
            self.answer(
                [
                    {
                        "type": "file",
                        "path": one.relative_to(self.folder).as_posix(),
                        "size": one.stat().st_size,
                        "oid": hashlib.sha1(one.read_bytes()).hexdigest(),
                    }
                    for one in files
                ]
            )
        elif match := re.fullmatch(rf"/datasets/{self.name}/resolve/[^/]+/(.+)", path):
            self.file(self.folder / match[1])
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET()

    def answer(self, content, status=200, headers=None):
        self.reply(json.dumps(content).encode(), status, headers or {})

    def file(self, path):
        if not path.is_file():
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        self.reply(content, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def reply(self, content, status, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


def serve(folder, name):
    """Return a running server; its ``server_port`` says where."""
    handler = type("OneDataSet", (Handler,), {"folder": Path(folder), "name": name})
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)
