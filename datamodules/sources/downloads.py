"""Files of one repository on the hub, and a way to bring them here that goes on where it was cut off."""

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Literal

from filelock import Timeout
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.file_download import DryRunFileInfo, http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from datamodules.sources.quiet import quiet_libraries
from mergers.errors import SheetbendError

# The hub's package fetches files whole, several at a time; larger ones are worth going on with.
RESUMED_FROM = 16 * 10**6
_SHOWN_FROM = 50 * 10**6  # bytes in small files that take long enough for a bar
_PROBE_BYTES = 32 * 10**6
_PROBE_SECONDS = 3.0
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Download:
    """What a run reads of one repository.

    Attributes:
        name: ``org/name``.
        kind: model or dataset.
        revision: branch, tag or commit; none: the main branch.
        files: the files, with their sizes and whether they are here, all of one commit.
    """

    name: str
    kind: Literal["model", "dataset"]
    revision: str | None
    files: tuple[DryRunFileInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.file_size or 0 for file in self.files)

    @property
    def lacking(self) -> tuple[DryRunFileInfo, ...]:
        """The files that are not on this machine, or whose contents are without the name under which they are read."""
        return tuple(file for file in self.files if file.will_download or not Path(file.local_path).exists())

    @property
    def missing(self) -> int:
        """Bytes that are still to come: of files that were cut off, the rest."""
        return sum(max((file.file_size or 0) - self._begun(file), 0) for file in self.files if file.will_download)

    def url(self, file: DryRunFileInfo) -> str:
        """Return where a file is."""
        return hf_hub_url(self.name, file.filename, repo_type=self.kind, revision=file.commit_hash)

    def blobs(self) -> Path:
        """Return the folder of the hub's cache in which the contents of the files are kept."""
        folder = repo_folder_name(repo_id=self.name, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE).expanduser() / folder / "blobs"

    def _begun(self, file: DryRunFileInfo) -> int:
        parts = self.blobs().glob(f"{_part_key(file)}.*.incomplete")
        return sum(part.stat().st_size for part in parts)


def complete(download: Download, say: Callable[[str, float], None] = lambda name, seconds: None) -> None:
    """Bring all files of ``download`` into the hub's cache, where its package finds them.

    Large files come one after the other; one that was cut off, also of an earlier process, goes on where it stopped,
    and counts as here only when its hash is the published one. Small ones come several at a time.

    Args:
        download: the files.
        say: called with the name of each large file and the seconds it took.

    Raises:
        SheetbendError: A file is not what the hub says it is.
    """
    large = [file for file in download.lacking if (file.file_size or 0) >= RESUMED_FROM]
    small = sum(file.file_size or 0 for file in download.lacking if file not in large)
    for file in large:
        started = time.monotonic()
        with quiet_libraries():
            _fetch_large(download, file)
        say(file.filename, time.monotonic() - started)
    with quiet_libraries(bars=small >= _SHOWN_FROM):
        snapshot_download(
            download.name,
            repo_type=download.kind,
            revision=download.revision,
            allow_patterns=[_literally(file.filename) for file in download.files],
        )
    _remove_abandoned(download.blobs())


def _remove_abandoned(blobs: Path) -> None:
    """Remove what killed processes have left of small files: the hub's package begins each anew, under another name.

    It holds a lock of a file's name while it writes one.
    """
    for part in blobs.glob("*.incomplete"):
        match = re.fullmatch(r"([0-9a-f]{40,64})\.[0-9a-f]{8}", part.stem)
        lock = blobs.parents[1] / ".locks" / blobs.parent.name / f"{match[1]}.lock" if match else None
        with contextlib.suppress(Timeout, OSError):
            if lock is not None:
                with WeakFileLock(lock, timeout=0.1):
                    part.unlink()


def measured_speed(download: Download) -> float | None:
    """Return the bytes a second at which the largest missing file begins to come; none if it does not.

    Takes three seconds or 32 MB, whichever is first, and keeps nothing.
    """
    file = max(download.lacking, key=lambda one: one.file_size or 0)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{_PROBE_BYTES - 1}"}
    received, started = 0, time.monotonic()
    try:
        with get_session().stream("GET", download.url(file), headers=headers, timeout=10) as response:
            response.raise_for_status()
            started = time.monotonic()
            for chunk in response.iter_bytes():
                received += len(chunk)
                if received >= _PROBE_BYTES or time.monotonic() - started >= _PROBE_SECONDS:
                    break
    except Exception:  # its HTTP client changes with its version; a speed is not worth an error
        return None
    return received / max(time.monotonic() - started, 1e-3) if received else None


def _fetch_large(download: Download, file: DryRunFileInfo) -> None:
    metadata = get_hf_file_metadata(download.url(file))
    blobs = download.blobs()
    blobs.mkdir(parents=True, exist_ok=True)
    target, part = blobs / metadata.etag, blobs / f"{_part_key(file)}.{metadata.etag[:16]}.incomplete"
    with WeakFileLock(part.with_suffix(".lock")):
        if not target.exists():
            _go_on(download, file, part, metadata.size)
            _check_hash(download, file, part, metadata.etag)
            part.replace(target)
    part.with_suffix(".lock").unlink(missing_ok=True)


def _go_on(download: Download, file: DryRunFileInfo, part: Path, size: int | None) -> None:
    """Append to ``part`` what it lacks."""
    with part.open("ab") as to:
        if size is not None and to.tell() > size:
            to.truncate(0)
            to.seek(0)
        http_get(
            download.url(file),
            to,
            resume_size=to.tell(),
            headers=build_hf_headers(),
            expected_size=size,
            displayed_filename=file.filename,
        )
        to.flush()
        os.fsync(to.fileno())


def _check_hash(download: Download, file: DryRunFileInfo, part: Path, etag: str) -> None:
    """Large files go by their sha256 on the hub; other servers may have other names for them."""
    if len(etag) != _SHA256_DIGITS:
        return
    with part.open("rb") as content:
        found = file_digest(content, "sha256").hexdigest()
    if found != etag:
        part.unlink()
        raise SheetbendError(
            f"hub {download.kind} {download.name}: {file.filename} came damaged (its sha256 is {found[:12]}..., not "
            f"{etag[:12]}...); the same command fetches it again"
        )


def _part_key(file: DryRunFileInfo) -> str:
    """Return a name for the part of a file that is here; the etag is not known before the hub is asked again."""
    return file.filename.replace("/", "--").replace("*", "_").replace("[", "_").replace("?", "_")


def _literally(name: str) -> str:
    """Return a pattern that only ``name`` matches.

    >>> _literally("data/train[1].parquet")
    'data/train[[]1].parquet'
    """
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
