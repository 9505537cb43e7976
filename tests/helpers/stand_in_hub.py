"""A stand-in for the Hugging Face Hub on the loopback address: what `huggingface_hub` asks to push and pull files.

It keeps repositories in memory, wants a token for writing, and refuses what it does not know.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_stand_in"


class Hub:
    """Repositories: name -> path of a file -> its bytes. `asked` lists method and path of all requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.endpoint = ""

    def commit(self, repository: str) -> str:
        content = json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in self.repositories[repository].items()})
        return hashlib.sha1(content.encode()).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, content: Any = None, code: int = 200, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, code: int, error: str, message: str) -> None:
            self.answer({"error": message}, code, {"X-Error-Code": error, "X-Error-Message": message})

        @property
        def place(self) -> str:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            return path

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.place
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "", "Invalid username or password.")
            if path == "/api/repos/create":
                facts = json.loads(body)
                name = f"{facts['organization']}/{facts['name']}" if facts.get("organization") else facts["name"]
                hub.repositories.setdefault(name, {})
                return self.answer({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})
            found = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path)
            if found is None or found[1] not in hub.repositories:
                return self.refuse(404, "RepoNotFound", "Repository not found")
            if found[2] == "preupload":
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                return self.answer({"files": modes})
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    hub.repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
            commit = hub.commit(found[1])
            url = f"{hub.endpoint}/{found[1]}/commit/{commit}"
            return self.answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

        def do_GET(self) -> None:
            path = self.place
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path)
            if found is not None and found[1] in hub.repositories:
                files = hub.repositories[found[1]]
                if found[2] == "tree":
                    entries = [
                        {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                        for p, c in files.items()
                    ]
                    return self.answer(entries)
                names = [{"rfilename": name} for name in files]
                facts = {"id": found[1], "modelId": found[1], "sha": hub.commit(found[1]), "siblings": names}
                return self.answer({**facts, "private": False, "tags": [], "downloads": 0, "likes": 0})
            return self.file(path)

        def do_HEAD(self) -> None:
            self.file(self.place)

        def file(self, path: str) -> None:
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if found is None or found[1] not in hub.repositories:
                return self.refuse(404, "RepoNotFound", "Repository not found")
            content = hub.repositories[found[1]].get(found[3])
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": hub.commit(found[1])}
            return self.answer(content, headers=headers)

    return Handler


@contextmanager
def stand_in_hub() -> Iterator[Hub]:
    """A hub that is there within the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
