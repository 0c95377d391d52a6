"""Contents by hash: mounts, large arguments and results, and the HTTP routes that blocks travel over."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any

from aiohttp import web
from modal_proto import api_pb2

BLOCK = 8 * 1024 * 1024  # bytes; the size of a block of a volume


class Store:
    """Contents in files named by SHA-256, and by a name of their own before their hash is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.url = ""  # http://127.0.0.1:PORT, set by the plane
        self.ranges: dict[str, tuple[Path, int, int]] = {}  # token → file, first byte, number of bytes

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, sha256_hex: str) -> bool:
        return self.path(sha256_hex).is_file()

    def put(self, data: bytes, name: str = "") -> str:
        """Keep `data` under its SHA-256, or under `name`."""
        name = name or hashlib.sha256(data).hexdigest()
        self.path(name).write_bytes(data)
        return name

    def link(self, file: Path, start: int, length: int) -> str:
        """A URL that serves these bytes of `file`."""
        token = secrets.token_hex(8)
        self.ranges[token] = (file, start, length)
        return f"{self.url}/range/{token}"

    def routes(self) -> list[web.RouteDef]:
        """PUT and GET of whole blobs, PUT of blocks, GET of ranges."""

        async def put_blob(request: web.Request) -> web.Response:
            data = await request.read()
            self.put(data, request.match_info["name"])
            return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

        async def get_blob(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(self.path(request.match_info["name"]))

        async def put_block(request: web.Request) -> web.Response:
            return web.Response(body=self.put(await request.read()).encode())

        async def get_range(request: web.Request) -> web.Response:
            file, start, length = self.ranges[request.match_info["token"]]
            with file.open("rb") as f:
                f.seek(start)
                return web.Response(body=f.read(length))

        return [
            web.put("/blob/{name}", put_blob),
            web.get("/blob/{name}", get_blob, allow_head=False),
            web.put("/block", put_block),
            web.get("/range/{token}", get_range, allow_head=False),
        ]


class Mounts:
    """Uploaded files (mounts), images, and blobs."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.store: Store = plane.store
        self.mounts: dict[str, dict[str, tuple[str, int]]] = {}  # mount → path in the container → (SHA-256, mode)
        self.images: dict[str, api_pb2.Image] = {}
        self.unbuildable = ""  # part of a Dockerfile line: images with it can't be built

    async def MountBatchedCheckExistence(self, request: Any, task_id: str) -> Any:
        missing = [h for h in request.sha256_hex_hashes if not self.store.has(h)]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: Any, task_id: str) -> Any:
        if request.WhichOneof("data_oneof") == "data_blob_id":
            self.store.path(request.data_blob_id).rename(self.store.path(request.sha256_hex))
        elif request.WhichOneof("data_oneof") == "data":
            self.store.put(request.data)
        return api_pb2.MountPutFileResponse(exists=self.store.has(request.sha256_hex))

    async def MountGetOrCreate(self, request: Any, task_id: str) -> Any:
        mount_id = self.plane.new_id("mo")
        self.mounts[mount_id] = {f.filename: (f.sha256_hex, f.mode) for f in request.files}
        checksum = hashlib.sha256(repr(sorted(self.mounts[mount_id].items())).encode()).hexdigest()
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id, handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=checksum)
        )

    async def ImageGetOrCreate(self, request: Any, task_id: str) -> Any:
        definition = request.image.SerializeToString(deterministic=True)
        image_id = "im-" + hashlib.sha256(definition).hexdigest()[:22]
        self.images[image_id] = request.image
        done = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        if self.unbuildable and any(self.unbuildable in line for line in self.commands(image_id)):
            failed = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            done = api_pb2.GenericResult(status=failed, exception=f"{self.unbuildable}: exit status 1")
        metadata = api_pb2.ImageMetadata(python_version_info="3.11", image_builder_version=request.builder_version)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=done, metadata=metadata)

    async def BlobCreate(self, request: Any, task_id: str) -> Any:
        blob_id = self.plane.new_id("bl")
        urls = api_pb2.UploadUrlList(items=[f"{self.store.url}/blob/{blob_id}"])
        return api_pb2.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id], upload_urls=urls)

    async def BlobGet(self, request: Any, task_id: str) -> Any:
        return api_pb2.BlobGetResponse(download_url=f"{self.store.url}/blob/{request.blob_id}")

    def commands(self, image_id: str) -> list[str]:
        """The Dockerfile lines of an image and of those it is built on, first to last."""
        image = self.images.get(image_id)
        if image is None:
            return []
        return [line for base in image.base_images for line in self.commands(base.image_id)] + list(
            image.dockerfile_commands
        )

    def files_of(self, mount_ids: list[str]) -> dict[str, tuple[str, int]]:
        """Path in the container → (SHA-256, mode), later mounts over earlier ones."""
        return {path: entry for mount_id in mount_ids for path, entry in self.mounts[mount_id].items()}
