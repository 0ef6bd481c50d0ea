"""A Hub on the loopback address: as much of the Hub's protocol as huggingface_hub needs for a bank.

Repositories are dictionaries in memory, files are committed inline, and a private repository does
not exist for whoever does not show its owner's token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"  # noqa: S105  of this server only


@dataclass
class Repository:
    """Its commits by id, oldest first; `main` is the last one."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        """A new commit with these files and no others; gives its id."""
        seed = repr((len(self.commits), sorted(files.items()))).encode()
        name = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        self.commits[name] = files
        return name

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def resolve(self, revision: str) -> str | None:
        """The commit that a revision stands for."""
        if revision == "main":
            return self.main
        return revision if revision in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server; `requests` lists what it was asked, as "METHOD /path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []  # files of which a range was fetched
        self.whole: list[str] = []  # files that were fetched whole
        self.always_public = False  # an organisation's rule
        self.refusing: str | None = None  # paths that contain this answer 403

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of the server's."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refusing and self.server.refusing in path:
            return self.refuse(403, "Forbidden", "Not today")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/models":
            return self.listed()
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)()", self.describe),
            (r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", self.describe),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self.tree),
            (r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", self.paths_info),
            (r"/api/models/([^/]+/[^/]+)/preupload/(main)", self.preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(main)", self.commit),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            if found := re.fullmatch(pattern, path):
                repo, revision, *rest = found.groups()
                repository = self.server.repositories.get(repo)
                if repository is None or (repository.private and not self.known):
                    return self.refuse(404, "RepoNotFound", "Repository not found")
                commit = repository.resolve(revision or "main")
                if commit is None:
                    return self.refuse(404, "RevisionNotFound", "Invalid rev id")
                return method(repo, repository, commit, body, *rest)
        return self.refuse(404, "EntryNotFound", "Not found")

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.known:
            return self.refuse(401, "Unauthorized", "Log in first")
        answer = {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo}
        if repo in self.server.repositories:
            return self.json(answer | {"error": "You already created this model repo"}, 409)
        asked_private = asked.get("private") or asked.get("visibility") == "private"
        private = bool(asked_private) and not self.server.always_public
        self.server.repositories[repo] = Repository(private)
        return self.json(answer)

    def listed(self) -> None:
        """The repositories of an author, two to a page."""
        asked = parse_qs(urlsplit(self.path).query)
        author, page = asked["author"][0], int(asked.get("page", ["0"])[0])
        mine = sorted(r for r in self.server.repositories if r.startswith(f"{author}/"))
        seen = [r for r in mine if self.known or not self.server.repositories[r].private]
        found = [
            {
                "id": repo,
                "sha": self.server.repositories[repo].main,
                "siblings": [
                    {"rfilename": name}
                    for name in self.server.repositories[repo].commits[
                        self.server.repositories[repo].main
                    ]
                ],
            }
            for repo in seen[2 * page : 2 * page + 2]
        ]
        more = {}
        if seen[2 * page + 2 :]:
            url = f"{self.server.url}/api/models?author={author}&page={page + 1}"
            more = {"Link": f'<{url}>; rel="next"'}
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json", **more})

    def describe(self, repo: str, repository: Repository, commit: str, body: bytes) -> None:
        files = [{"rfilename": name} for name in sorted(repository.commits[commit])]
        about = {"id": repo, "modelId": repo, "sha": commit, "private": repository.private}
        self.json(about | {"siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def tree(
        self,
        repo: str,
        repository: Repository,
        commit: str,
        body: bytes,
        folder: str | None = None,
    ) -> None:
        inside = f"{folder}/" if folder else ""
        deep = "recursive=true" in urlsplit(self.path).query.lower()
        found = {
            n: e for n, e in entries(repository.commits[commit]).items() if n.startswith(inside)
        }
        if inside and not found:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.json([e for n, e in found.items() if deep or "/" not in n[len(inside) :]])

    def paths_info(self, repo: str, repository: Repository, commit: str, body: bytes) -> None:
        known = entries(repository.commits[commit])
        asked = parse_qs(body.decode()).get("paths", [])
        self.json([known[path] for path in asked if path in known])

    def preupload(self, repo: str, repository: Repository, commit: str, body: bytes) -> None:
        files = [f["path"] for f in json.loads(body)["files"]]
        inline = {"uploadMode": "regular", "shouldIgnore": False}
        self.json({"files": [{"path": name} | inline for name in files]})

    def commit(self, repo: str, repository: Repository, commit: str, body: bytes) -> None:
        if not self.known:
            return self.refuse(401, "Unauthorized", "Log in first")
        files = dict(repository.commits[commit])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files)
        url = f"{self.server.url}/{repo}/commit/{made}"
        return self.json({"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})

    def resolve(
        self, repo: str, repository: Repository, commit: str, body: bytes, name: str
    ) -> None:
        data = repository.commits[commit].get(name)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(ranged[1]), int(ranged[2] or len(data) - 1)
            part = data[start : end + 1]
            self.server.ranges.append(f"{repo}/{name}")
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            return self.send(206, part, headers)
        if self.command == "GET":
            self.server.whole.append(f"{repo}/{name}")
        return self.send(200, data, headers)

    def json(self, document: Any, status: int = 200) -> None:
        self.send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, json.dumps({"error": message}).encode(), headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entries(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Files and folders as the Hub lists them; weights are kept in LFS, by their SHA-256."""
    found: dict[str, dict[str, Any]] = {}
    for name, data in sorted(files.items()):
        for depth in range(1, name.count("/") + 1):
            folder = "/".join(name.split("/")[:depth])
            found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid(b"")}
        found[name] = {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
        if name.endswith(".safetensors"):
            large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            found[name]["lfs"] = large
    return found


def oid(data: bytes) -> str:
    """Git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
