"""The Hub's HTTP protocol on loopback, as `huggingface_hub` 2.4 speaks it to push: accounts, repositories, large files,
commits. Stricter than the real one: every request needs a known token, but the upload of a large file, which must not
carry one; an unknown route, a wrong hash, a size that differs or a file that was not announced is an error.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOKEN, OTHERS_TOKEN = "hf_mine0123456789abcdefghij", "hf_theirs0123456789abcdefgh"
ACCOUNTS = {TOKEN: "ana", OTHERS_TOKEN: "bruno"}
LARGE = re.compile(r".*\.(safetensors|gguf)$")


@dataclass
class Repository:
    """private; commits: their messages; files: path → content, or the SHA-256 of a large one."""

    private: bool
    files: dict[str, bytes | str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()


class Hub:
    """What the server holds, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}  # `models/ana/x`
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.announced: dict[str, int] = {}  # their sizes, from the batch request
        self.uploads: list[str] = []  # SHA-256 of each upload, in order
        self.refuse_after: int | None = None  # uploads, after which the storage is full
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.url = ""

    def text(self, repository: str, path: str) -> str:
        content = self.repositories[repository].files[path]
        assert isinstance(content, bytes), f"{path} is a large file"
        return content.decode()


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        try:
            status, value = 200, self.routed(path, body)
        except Refused as refused:
            status, value = refused.status, {"error": refused.message}
            self.code = refused.code
        else:
            self.code = None
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if self.code:
            self.send_header("X-Error-Code", self.code)
        if status >= 400:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def routed(self, path: str, body: bytes) -> Any:
        if self.command == "PUT" and (found := re.fullmatch(r"/storage/([0-9a-f]{64})", path)):
            return self.store(found[1], body)
        account = self.account()
        for method, pattern, handle in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return handle(self, account, body, *found.groups())
        self.hub.unknown.append(f"{self.command} {path}")
        raise Refused(404, f"no route {self.command} {path}")

    def account(self) -> str:
        given = self.headers.get("Authorization", "")
        if (name := ACCOUNTS.get(given.removeprefix("Bearer "))) is None:
            raise Refused(401, "Invalid username or password." if given else "no token")
        return name

    def writable(self, account: str, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and name.split("/")[0] != account):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if name.split("/")[0] != account:
            raise Refused(403, "Forbidden: you don't have write access")
        return found

    # --- routes
    def whoami(self, account: str, body: bytes) -> Any:
        return {"type": "user", "name": account, "orgs": []}

    def create(self, account: str, body: bytes) -> Any:
        wanted = json.loads(body)
        owner = wanted.get("organization") or account
        if owner != account:
            raise Refused(403, f"You don't have the rights to create a {wanted['type']} under the namespace {owner!r}")
        key = f"{wanted.get('type', 'model')}s/{owner}/{wanted['name']}"
        if key in self.hub.repositories:
            raise Refused(409, "You already created this repo")
        self.hub.repositories[key] = Repository(wanted["visibility"] == "private", {".gitattributes": b""})
        return {"url": f"{self.hub.url}/{key.removeprefix('models/')}"}

    def info(self, account: str, body: bytes, kind: str, name: str) -> Any:
        found = self.hub.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and name.split("/")[0] != account):
            raise Refused(404, "Repository not found", "RepoNotFound")
        files = [{"rfilename": path} for path in found.files]
        return {"id": name, "sha": found.head, "private": found.private, "siblings": files, "tags": [], "downloads": 0}

    def validate(self, account: str, body: bytes) -> Any:
        content = json.loads(body)["content"]
        if not re.match(r"---\n(.+\n)+---\n", content):
            raise Refused(400, "no front matter")
        return {"errors": [], "warnings": []}

    def preupload(self, account: str, body: bytes, kind: str, name: str) -> Any:
        found = self.writable(account, kind, name)
        answers = []
        for file in json.loads(body)["files"]:
            base64.b64decode(file["sample"], validate=True)
            mode = "lfs" if LARGE.match(file["path"]) else "regular"
            held = found.files.get(file["path"])
            oid = held if isinstance(held, str) or held is None else git_hash(held)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def batch(self, account: str, body: bytes, prefix: str | None, name: str) -> Any:
        self.writable(account, "datasets" if prefix else "models", name)
        objects = []
        for wanted in json.loads(body)["objects"]:
            self.hub.announced[wanted["oid"]] = wanted["size"]
            action = {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.hub.objects else {"actions": action}))
        return {"transfer": "basic", "objects": objects}

    def store(self, digest: str, body: bytes) -> Any:
        if "Authorization" in self.headers:
            raise Refused(400, "the token is not for the storage")
        if self.hub.announced.get(digest) != len(body) or hashlib.sha256(body).hexdigest() != digest:
            raise Refused(400, "not the file that was announced")
        if self.hub.refuse_after is not None and len(self.hub.uploads) >= self.hub.refuse_after:
            raise Refused(507, "storage quota exceeded")
        self.hub.objects[digest] = body
        self.hub.uploads.append(digest)
        return {}

    def commit(self, account: str, body: bytes, kind: str, name: str) -> Any:
        found = self.writable(account, kind, name)
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit", found.head) != found.head:
            raise Refused(412, "the branch has moved")
        files = dict(found.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file" and not LARGE.match(value["path"]):
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif operation["key"] == "lfsFile" and len(self.hub.objects[value["oid"]]) == value["size"]:
                files[value["path"]] = value["oid"]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"not an operation: {operation['key']}")
        found.files = files
        found.commits.append(header["value"]["summary"])
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{found.head}", "commitOid": found.head, "success": True}


KIND_AND_NAME = r"/api/(models|datasets)/([\w.-]+/[\w.-]+)"
ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", KIND_AND_NAME + "(?:/revision/main)?", Handler.info),
    ("POST", KIND_AND_NAME + "/preupload/main", Handler.preupload),
    ("POST", r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", KIND_AND_NAME + "/commit/main", Handler.commit),
)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A running Hub; `hub.url` is its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
