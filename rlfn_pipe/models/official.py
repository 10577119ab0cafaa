"""The authors' files: what there is, pinned by checksum, and where it lies once fetched. No torch.

They are not shipped: `rlfn-pipe weights fetch` puts them into the user's cache folder, after which
they can be used by name (`official-rlfn`, ...). Values are 0..255 at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rlfn_pipe.errors import UsageError
from rlfn_pipe.files import cache_folder
from rlfn_pipe.models.architectures import architecture
from rlfn_pipe.types import ModelSpec


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
