"""A small hub on 127.0.0.1: repositories in memory, filled by commits and read by downloads, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


COMMIT = "0" * 40


@dataclass
class LocalHub:
    """What the clients have made.

    Attributes:
        endpoint (`str`):
            Address.
        repos (`dict`):
            Type and id of each repository: whether it is private, and the content of its files.
        requests (`list[str]`):
            Method and path of each request.
    """

    endpoint: str = ""
    repos: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def files(self, kind: str, repo_id: str) -> dict[str, bytes]:
        """Files of a repository."""
        return self.repos[kind, repo_id]["files"]


def make_handler(hub: LocalHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def answer(self, status: int, content: bytes | Any = b"", **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path == "/api/repos/create":
                asked = json.loads(body)
                kind = asked.get("type") or "model"
                repo_id = "/".join(filter(None, [asked.get("organization") or "me", asked["name"]]))
                is_private = bool(asked.get("private") or asked.get("visibility") == "private")
                hub.repos.setdefault((kind, repo_id), {"private": is_private, "files": {}})
                prefix = "" if kind == "model" else f"{kind}s/"
                self.answer(200, {"url": f"{hub.endpoint}/{prefix}{repo_id}"})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/(preupload|commit)/main", path):
                kind, repo_id, action = found.groups()
                if action == "preupload":
                    names = [entry["path"] for entry in json.loads(body)["files"]]
                    modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                    self.answer(200, {"files": modes})
                    return
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.files(kind, repo_id)[line["value"]["path"]] = content
                address = f"{hub.endpoint}/{repo_id}/commit/{COMMIT}"
                self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "success": True})
            else:
                self.answer(404)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if path == "/api/whoami-v2":
                self.answer(200, {"name": "me", "type": "user", "orgs": []})
                return
            if re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/[^/]+/.+", path):
                self.answer(404, X_Error_Code="EntryNotFound")  # no repository here has folders
                return
            kind = "dataset" if path.startswith("/datasets/") else "model"
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path.removeprefix("/datasets"))
            files = hub.repos.get((kind, found[1]), {}).get("files") if found else None
            if found is None or files is None:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif found[2] not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                content = files[found[2]]
                self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub until the block ends."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
