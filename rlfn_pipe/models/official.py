"""The authors' files: where they lie, pinned by checksum, and fetching them. No torch.

They are not shipped: `rlfn-pipe weights fetch` puts them into the user's cache folder, after which
they can be used by name (`official-rlfn`, ...). Values are 0..255 at both ends.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rlfn_pipe.errors import OutputError, UsageError, WeightsError
from rlfn_pipe.files import atomic_path, cache_folder
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.types import ModelSpec

BASE_URL = "https://raw.githubusercontent.com/bytedance/RLFN/HEAD/model_zoo/"
#: No file of the family comes near this many bytes.
_LARGEST = 32 * 1024 * 1024
_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """One of the authors' files. `psnr`: dB on Y, measured with `rlfn-pipe evaluate`."""

    network: str
    scale: int
    file: str
    sha256: str
    parameters: int
    psnr: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        return f"official-{self.network}"

    def spec(self) -> ModelSpec:
        """The spec of the fetched file."""
        return replace(
            architecture(self.network, self.scale),
            name=self.name,
            input_range=255.0,
            parameters=self.parameters,
            sha256=self.sha256,
            licence="Apache-2.0",
            path=official_path(self),
            psnr=dict(self.psnr),
        )


def _file(network: str, scale: int, file: str, sha256: str, parameters: int, *psnr: float) -> OfficialFile:
    sets = ("Set5", "Set14", "BSD100")
    return OfficialFile(network, scale, file, sha256, parameters, tuple(zip(sets, psnr, strict=True)))


OFFICIAL = (
    _file(
        "rlfn", 2, "rlfn_x2.pth", "eafe5d5feeb122022453595c06d79160facdc157ae88deb02a44c50f5eba2d41",
        526_856, 38.07, 33.73, 32.24,
    ),
    _file(
        "rlfn", 4, "rlfn_x4.pth", "8c7edb57dfc89048bafba29d591d4c27d4099964b4a9e22df23d6dc257a637c0",
        543_740, 32.24, 28.62, 27.61,
    ),
    _file(
        "rlfn-s", 2, "rlfn_s_x2.pth", "f5175f499f869c1b884c2552a1bcd6abd07ab352e3d8c8c9abe31b1deb60fe45",
        454_620, 38.05, 33.63, 32.21,
    ),
    _file(
        "rlfn-s", 4, "rlfn_s_x4.pth", "f769c5a88433786b2db0c2b24da6ca6c92a24c62344b9354a390f8a74388e89d",
        470_208, 32.24, 28.63, 27.58,
    ),
    _file(
        "rlfn-ntire", 4, "rlfn_ntire_x4.pth",
        "3c9be7b9d7a4bece9b68c83a56a1ffb38010f76413d5f215be6b4be842e18fb2", 317_218, 32.10, 28.60, 27.58,
    ),
)  # fmt: skip


def official_path(file: OfficialFile) -> Path:
    """Where `file` is, or will be, once fetched."""
    return cache_folder("weights") / file.file


def choose(name: str) -> list[OfficialFile]:
    """The official files that `name` means: a file's name, a network's name, or "all"."""
    bare = name.removeprefix("official-")
    found = [f for f in OFFICIAL if name == "all" or bare in (f.network, f.file, f.file.removesuffix(".pth"))]
    if not found:
        networks = ", ".join(dict.fromkeys(f.network for f in OFFICIAL))
        raise UsageError(f"there are no official weights called {name!r}; choose {networks} or all")
    return found


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
