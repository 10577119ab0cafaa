"""Downloads one of the authors' files, checked by its pinned SHA-256, into the user's cache folder. No torch."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rlfn_pipe.errors import OutputError, WeightsError
from rlfn_pipe.files import atomic_path
from rlfn_pipe.models.official import OfficialFile, official_path

BASE_URL = "https://raw.githubusercontent.com/bytedance/RLFN/HEAD/model_zoo/"
#: No file of the family comes near this many bytes.
_LARGEST = 32 * 1024 * 1024
_TIMEOUT = 30.0


def fetch(
    file: OfficialFile,
    base_url: str = BASE_URL,
    on_bytes: Callable[[int, int | None], None] = lambda _done, _total: None,
) -> Path:
    """Download `file`, check its SHA-256, move it into the cache folder; returns its path.

    A good file that is there already is not downloaded again. Raises WeightsError when the
    address cannot be reached or the checksum differs, OutputError when the cache cannot be
    written; nothing is left behind then.
    """
    target = official_path(file)
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == file.sha256:
        return target
    url = base_url + file.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as partial:
            with partial.open("wb") as out:
                found = _download(url, out.write, on_bytes)
            if found != file.sha256:
                raise WeightsError(
                    f"{url}: its SHA-256 is {found[:12]}..., not {file.sha256[:12]}... as pinned;"
                    " the file there was changed, so it was not kept"
                )
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}); set RLFN_PIPE_CACHE"
        ) from error
    return target


def _download(url: str, write: Callable[[bytes], object], on_bytes: Callable[[int, int | None], None]) -> str:
    """Stream `url` into `write`; returns the SHA-256. Errors of the network are WeightsError."""
    digest, done = hashlib.sha256(), 0
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{url}: cannot be fetched ({reason}); check the network, then try again"
        ) from error
    with response:
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        while True:
            try:
                block = response.read(1 << 16)
            except (http.client.HTTPException, OSError) as error:
                raise WeightsError(f"{url}: the connection broke ({error}); try again") from error
            if not block:
                if total is not None and done < total:
                    raise WeightsError(
                        f"{url}: the connection broke after {done} of {total} bytes; try again"
                    )
                return digest.hexdigest()
            done += len(block)
            if done > _LARGEST:
                raise WeightsError(f"{url}: is larger than any weights file; it was not kept")
            digest.update(block)
            write(block)
            on_bytes(done, total)
