"""Volumes: a committed folder each; containers work on a copy, seen by others after `commit`, seeing others after `reload`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpclib import Status
from modal_proto import api_pb2

from .blobs import BLOCK
from .rpc import refuse

V2 = api_pb2.VOLUME_FS_VERSION_V2


@dataclass
class Volume:
    """A named volume; `folder` holds what is committed."""

    id: str
    name: str
    version: int
    folder: Path
    created_at: float = field(default_factory=time.time)
    commits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # a commit is whole before anyone sees it

    def metadata(self) -> Any:
        return api_pb2.VolumeMetadata(
            version=self.version,
            name=self.name,
            creation_info=api_pb2.CreationInfo(created_at=self.created_at, created_by="tests"),
        )

    def path(self, remote: str) -> Path:
        """The file behind a path on the volume.

        Raises:
            GRPCError: INVALID_ARGUMENT, it leads out of the volume.
        """
        path = self.folder / remote.lstrip("/")
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise refuse(Status.INVALID_ARGUMENT, f"path {remote!r} leaves the volume")
        return path


def signatures(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Path → (inode, bytes, time of change in ns): what tells whether a file was written."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the body goes on writing and removing meanwhile
            if not path.is_dir() or path.is_symlink():
                stat = path.lstat()
                found[path.relative_to(folder).as_posix()] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            elif not any(path.iterdir()):
                found[path.relative_to(folder).as_posix() + "/"] = (0, 0, 0)
    return found


class Copy:
    """A container's view of a volume: a copy, and what it looked like when taken."""

    def __init__(self, volume: Volume, folder: Path) -> None:
        self.volume, self.folder = volume, folder
        self.base: dict[str, tuple[int, int, int]] = {}  # what lay here after the last reload or commit
        self.source: dict[str, tuple[int, int, int]] = {}  # and on the volume
        folder.mkdir(parents=True, exist_ok=True)
        self.reload()

    def reload(self) -> None:
        """Show what is committed now; writes that were not committed are gone."""
        with self.volume.lock:
            self._show()

    def _show(self) -> None:
        there = signatures(self.volume.folder)
        here = signatures(self.folder)
        for path in here:  # what is as it was stays in place: a reload is not seen half done
            if self.base.get(path) != here[path] or there.get(path) != self.source.get(path):
                target = self.folder / path.rstrip("/")
                target.rmdir() if path.endswith("/") else target.unlink()
        for path in there:
            source, target = self.volume.folder / path.rstrip("/"), self.folder / path.rstrip("/")
            if path.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
            elif not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        for folder in sorted((p for p in self.folder.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
            if not any(folder.iterdir()) and not (self.volume.folder / folder.relative_to(self.folder)).is_dir():
                folder.rmdir()
        self.base, self.source = signatures(self.folder), there

    def commit(self) -> bool:
        """Carry what was written and removed here over to the volume, file by file; the last to write a file wins.

        Returns:
            whether anything changed.
        """
        with self.volume.lock:
            return self._carry_over()

    def _carry_over(self) -> bool:
        now = signatures(self.folder)
        changed = [path for path, signature in now.items() if self.base.get(path) != signature]
        gone = [path for path in self.base if path not in now]
        for path in gone:
            target = self.volume.folder / path.rstrip("/")
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir() and not any(target.iterdir()):
                target.rmdir()
        for path in changed:
            source, target = self.folder / path.rstrip("/"), self.volume.folder / path.rstrip("/")
            if path.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.commit")
            try:
                shutil.copy2(source, part, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since it was listed
            part.replace(target)
        for path in sorted((p.rpartition("/")[0] for p in gone), key=len, reverse=True):
            folder = self.volume.folder / path
            while (
                folder != self.volume.folder
                and folder.is_dir()
                and not any(folder.iterdir())
                and not (self.folder / folder.relative_to(self.volume.folder)).exists()
            ):
                folder.rmdir()
                folder = folder.parent
        there, self.base = signatures(self.volume.folder), now
        for path in (*changed, *gone):
            self.source[path] = there.get(path, (0, 0, 0))
        return bool(changed or gone)


def open_files(folder: Path, pids: list[int]) -> list[str]:
    """Files of `folder` that these processes hold open or mapped, as /proc shows them."""
    inside = {(s.st_dev, s.st_ino): p for p in [folder, *folder.rglob("*")] for s in [p.lstat()]}
    held = set()
    for pid in pids:
        for link in [*_entries(f"/proc/{pid}/fd"), f"/proc/{pid}/cwd", *_entries(f"/proc/{pid}/map_files")]:
            try:
                stat = os.stat(link)
            except OSError:
                continue  # the process or its file went away meanwhile
            if (stat.st_dev, stat.st_ino) in inside:
                held.add(inside[stat.st_dev, stat.st_ino].relative_to(folder).as_posix())
    return sorted(held)


def _entries(folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


class Volumes:
    """The Volume… calls."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.root: Path = plane.folder / "volumes"
        self.by_name: dict[str, Volume] = {}
        self.by_id: dict[str, Volume] = {}

    def create(self, name: str, version: int = 0) -> Volume:
        """A new, empty volume."""
        volume_id = self.plane.new_id("vo")
        volume = Volume(volume_id, name, version or api_pb2.VOLUME_FS_VERSION_V1, self.root / (name or volume_id))
        volume.folder.mkdir(parents=True)
        self.by_id[volume_id] = volume
        if name:
            self.by_name[name] = volume
        return volume

    def _get(self, volume_id: str) -> Volume:
        if volume_id not in self.by_id:
            raise refuse(Status.NOT_FOUND, f"Volume '{volume_id}' not found")
        return self.by_id[volume_id]

    async def VolumeGetOrCreate(self, request: Any, task_id: str) -> Any:
        volume = self.by_name.get(request.deployment_name)
        kind = request.object_creation_type
        if volume is None and kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise refuse(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found in environment 'main'")
        if volume is not None and kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise refuse(
                Status.ALREADY_EXISTS, f"Volume '{request.deployment_name}' already exists in environment 'main'"
            )
        volume = volume or self.create(request.deployment_name, request.version)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=volume.version, metadata=volume.metadata()
        )

    async def VolumeList(self, request: Any, task_id: str) -> Any:
        named = sorted(self.by_name.values(), key=lambda v: -v.created_at)
        items = [
            api_pb2.VolumeListItem(label=v.name, volume_id=v.id, created_at=v.created_at, metadata=v.metadata())
            for v in named
        ]
        return api_pb2.VolumeListResponse(items=items, environment_name="main")

    async def VolumeDelete(self, request: Any, task_id: str) -> Any:
        volume = self._get(request.volume_id)
        shutil.rmtree(volume.folder)
        del self.by_id[volume.id], self.by_name[volume.name]
        return self.plane.empty

    async def VolumeListFiles(self, request: Any, task_id: str) -> AsyncIterator[Any]:
        yield api_pb2.VolumeListFilesResponse(entries=self._list(request))

    async def VolumeListFiles2(self, request: Any, task_id: str) -> AsyncIterator[Any]:
        yield api_pb2.VolumeListFiles2Response(entries=self._list(request))

    def _list(self, request: Any) -> list[Any]:
        volume = self._get(request.volume_id)
        path = volume.path(request.path)
        if not path.exists():
            raise refuse(Status.NOT_FOUND, f"No such file or directory: '{request.path}'")
        found = [path] if path.is_file() else sorted(path.rglob("*") if request.recursive else path.iterdir())
        kinds = api_pb2.FileEntry.FileType
        return [
            api_pb2.FileEntry(
                path=p.relative_to(volume.folder).as_posix(),
                type=kinds.DIRECTORY if p.is_dir() else kinds.FILE,
                mtime=int(p.stat().st_mtime),
                size=p.stat().st_size if p.is_file() else 0,
            )
            for p in found
        ]

    async def VolumePutFiles(self, request: Any, task_id: str) -> Any:
        volume = self._get(request.volume_id)
        self._refuse_existing(volume, [f.filename for f in request.files], request.disallow_overwrite_existing_files)
        for file in request.files:
            target = volume.path(file.filename)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.plane.store.path(file.sha256_hex), target)
        return self.plane.empty

    async def VolumePutFiles2(self, request: Any, task_id: str) -> Any:
        volume, store = self._get(request.volume_id), self.plane.store
        self._refuse_existing(volume, [f.path for f in request.files], request.disallow_overwrite_existing_files)
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(file_index=i, block_index=j, put_url=f"{store.url}/block")
            for i, file in enumerate(request.files)
            for j, block in enumerate(file.blocks)
            if not store.has(block.contents_sha256.hex())
        ]
        for file in [] if missing else request.files:
            target = volume.path(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"".join(store.path(b.contents_sha256.hex()).read_bytes() for b in file.blocks))
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    @staticmethod
    def _refuse_existing(volume: Volume, paths: list[str], refuse_them: bool) -> None:
        for path in paths if refuse_them else []:
            if volume.path(path).exists():
                raise refuse(Status.ALREADY_EXISTS, f"{path}: already exists")

    async def VolumeGetFile2(self, request: Any, task_id: str) -> Any:
        path = self._get(request.volume_id).path(request.path)
        if not path.is_file():
            raise refuse(Status.NOT_FOUND, f"No such file: '{request.path}'")
        size = path.stat().st_size
        length = min(request.len or size, size) - request.start if request.len else size - request.start
        starts = range(request.start, request.start + length, BLOCK)
        urls = [self.plane.store.link(path, s, min(BLOCK, request.start + length - s)) for s in starts]
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=request.start, len=length)

    async def VolumeRemoveFile(self, request: Any, task_id: str) -> Any:
        path = self._get(request.volume_id).path(request.path)
        if not path.exists():
            raise refuse(Status.NOT_FOUND, f"No such file or directory: '{request.path}'")
        if path.is_dir() and not request.recursive:
            raise refuse(Status.INVALID_ARGUMENT, f"'{request.path}' is a directory; use --recursive")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.plane.empty

    VolumeRemoveFile2 = VolumeRemoveFile

    async def VolumeCommit(self, request: Any, task_id: str) -> Any:
        copy = self._mounted(request.volume_id, task_id)
        task = self.plane.tasks[task_id]
        await self.plane.faults.committing(task)
        changed = await asyncio.to_thread(copy.commit)
        copy.volume.commits += changed
        self.plane.faults.committed(task)
        return api_pb2.VolumeCommitResponse(skip_reload=not self.plane.commits_reload)

    async def VolumeReload(self, request: Any, task_id: str) -> Any:
        copy = self._mounted(request.volume_id, task_id)
        held = open_files(copy.folder, self.plane.tasks[task_id].pids())
        if held:
            raise refuse(
                Status.FAILED_PRECONDITION, f"there are open files preventing the operation: path {held[0]} is open"
            )
        await asyncio.to_thread(copy.reload)
        return self.plane.empty

    def _mounted(self, volume_id: str, task_id: str) -> Copy:
        if not task_id:
            raise refuse(Status.FAILED_PRECONDITION, "commit and reload are for containers")
        copies = self.plane.tasks[task_id].copies
        if volume_id not in copies:
            raise refuse(Status.NOT_FOUND, f"Volume '{volume_id}' is not mounted in this container")
        return copies[volume_id]
