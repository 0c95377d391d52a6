"""A Hugging Face Hub on loopback for the containers: folders of this machine under the names of models, gated or not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web


@dataclass
class Model:
    """A folder that is downloaded as `org/name`; a gated one only by whoever accepted its licence."""

    folder: Path
    gated: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()


class Hub:
    """What `huggingface_hub` asks: a model's description, its files' headers, its files.

    Attributes:
        models: name → model; the containers are pointed here as soon as there is one.
        accepted: tokens whose account accepted the licences.
        served: the files that were downloaded, as "org/name/file".
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.accepted: set[str] = set()
        self.served: list[str] = []

    def add(self, name: str, folder: Path, *, gated: bool = False) -> None:
        """Offer `folder` as the model `name`."""
        self.models[name] = Model(Path(folder), gated)

    def routes(self) -> list[web.RouteDef]:
        api, file = "/hub/api/models/{org}/{name}", "/hub/{org}/{name}/resolve/{revision}/{path:.+}"
        return [
            web.get(api, self._describe),
            web.get(api + "/auth-check", self._may_read),
            web.get(api + "/revision/{revision}", self._describe),
            web.get(api + "/tree/{revision}", self._tree),
            web.head(file, self._file),
            web.get(file, self._file, allow_head=False),
        ]

    def _find(self, request: web.Request) -> tuple[str, Model]:
        name = f"{request.match_info['org']}/{request.match_info['name']}"
        if name not in self.models:
            raise web.HTTPUnauthorized(
                headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        return name, self.models[name]

    def _require_licence(self, request: web.Request, name: str, model: Model) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if model.gated and token not in self.accepted:
            refusal = web.HTTPForbidden if token else web.HTTPUnauthorized
            said = f"Access to model {name} is restricted and you are not in the authorized list."
            raise refusal(headers={"X-Error-Code": "GatedRepo", "X-Error-Message": said}, text=said)

    async def _may_read(self, request: web.Request) -> web.Response:
        self._require_licence(request, *self._find(request))
        return web.json_response({})

    async def _describe(self, request: web.Request) -> web.Response:
        name, model = self._find(request)
        files = [{"rfilename": p.name} for p in sorted(model.folder.iterdir()) if p.is_file()]
        return web.json_response(
            {
                "id": name,
                "modelId": name,
                "sha": model.commit,
                "siblings": files,
                "gated": "manual" if model.gated else False,
                "tags": [],
            }
        )

    async def _tree(self, request: web.Request) -> web.Response:
        _, model = self._find(request)
        rows = [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _etag(p)}
            for p in sorted(model.folder.iterdir())
            if p.is_file()
        ]
        return web.json_response(rows)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name, model = self._find(request)
        self._require_licence(request, name, model)
        path = model.folder / request.match_info["path"]
        headers = {"X-Repo-Commit": model.commit}
        if not path.is_file():
            raise web.HTTPNotFound(headers=headers | {"X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{_etag(path)}"', "Content-Length": str(path.stat().st_size)}
        if request.method == "HEAD":
            return web.Response(headers=headers)
        self.served.append(f"{name}/{path.name}")
        return web.Response(body=path.read_bytes(), headers={k: v for k, v in headers.items() if k != "Content-Length"})


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
