"""Weights files: reading, writing, and telling from its tensors what network a file holds.

PyTorch is loaded only for what it alone reads and makes: pickles, bfloat16, modules; and safetensors only for its
own files, since training does without it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlfn_pipe.errors import OutputError, WeightsError
from rlfn_pipe.files import write_atomically
from rlfn_pipe.models import registry
from rlfn_pipe.models.architectures import ARCHITECTURES, shapes
from rlfn_pipe.models.folding import Weights
from rlfn_pipe.types import ModelSpec

if TYPE_CHECKING:
    import torch

    from rlfn_pipe.models.rlfn import RLFN

__all__ = [
    "detect",
    "import_file",
    "load",
    "load_file",
    "load_weights",
    "module_of",
    "read",
    "save",
    "stated_range",
]

#: An array, or a tensor that may not be one that can become an array.
_Values = Any
#: Of safetensors, as it names them; numpy has no others.
_ARRAYS = {"F64", "F32", "F16"}

#: No network of the family comes near this many bytes.
_LARGEST = 512 * 1024 * 1024
#: Ours has a few thousand; the library would take 100 MB of JSON.
_LARGEST_HEADER = 4 * 1024 * 1024
#: Wider and deeper than any RLFN that will be trained. Shapes cost a file nothing: a tensor can claim
#: any size over a handful of stored values.
_MOST_CHANNELS, _MOST_BLOCKS, _MOST_PARAMETERS = 1024, 64, 64_000_000
#: Names end up in file names and on terminals.
_FIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
#: State dicts are often wrapped by the training code that wrote them.
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "ema", "model")


def detect(state: Weights, metadata: Mapping[str, str] | None = None, where: str = "weights") -> ModelSpec:
    """The spec of the network whose state dict `state` is, from its names and shapes.

    `metadata` (of a safetensors file) states `input_range`, `name` and `licence`; without it
    the file is taken for a foreign one with values in 0..255, as the official ones have.
    Raises WeightsError naming `where` when it is no RLFN, or one with missing or odd tensors.
    """
    metadata = metadata or {}
    try:
        channels = int(state["conv_1.weight"].shape[0])
        mid_channels = int(state["block_1.c1_r.weight"].shape[0])
        esa_channels = int(state["block_1.esa.conv1.weight"].shape[0])
        outputs = int(state["upsampler.0.weight"].shape[0])
    except (KeyError, IndexError) as error:
        raise WeightsError(
            f"{where}: is no RLFN (it lacks {error}); give the weights of an RLFN network"
        ) from error
    numbers = {int(match[1]) for key in state if (match := re.match(r"block_(\d{1,9})\.", key))}
    widths = (channels, mid_channels, esa_channels)
    if not all(0 < width <= _MOST_CHANNELS for width in widths) or len(numbers) > _MOST_BLOCKS:
        raise WeightsError(
            f"{where}: claims {channels} channels and {len(numbers)} blocks, which no RLFN has; give another file"
        )
    scale = round((outputs / 3) ** 0.5)
    if 3 * scale**2 != outputs or scale not in (2, 3, 4) or numbers != set(range(1, len(numbers) + 1)):
        raise WeightsError(
            f"{where}: {outputs} output channels and {len(numbers)} blocks make no RLFN of scale 2, 3 or 4;"
            " give another file"
        )
    shape = (channels, mid_channels, len(numbers))
    known = {value: name for name, value in ARCHITECTURES.items()}
    stated = metadata.get("name", "")
    spec = ModelSpec(
        name=stated
        if _FIT_NAME.fullmatch(stated)
        else known.get(shape, f"rlfn-{channels}-{mid_channels}-{len(numbers)}"),
        scale=scale,
        channels=channels,
        mid_channels=mid_channels,
        blocks=len(numbers),
        esa_channels=esa_channels,
        input_range=stated_range(metadata, where),
        parameters=sum(values.size for values in state.values()),
        licence=metadata.get("licence", ""),
    )
    _compare(state, shapes(spec), where)
    return spec


def load(model: str | Path, scale: float | None = None) -> tuple[ModelSpec, RLFN]:
    """The network called `model`, or in the file `model` (.safetensors, .pth), ready to infer.

    A name is looked up as `registry.find` does (`scale` default 4) and its file's checksum is
    compared. A file decides its own scale. The module is fp32, on the CPU, in evaluation mode.
    Raises UsageError for unknown names and scales, WeightsError for files that cannot be used.
    """
    spec, weights = load_weights(model, scale)
    return spec, module_of(spec, weights)


def load_file(path: Path) -> tuple[ModelSpec, RLFN]:
    """The network in a .safetensors or .pth file; WeightsError when there is none."""
    spec, weights = _load_file(path)
    return spec, module_of(spec, weights)


def module_of(spec: ModelSpec, weights: Weights) -> RLFN:
    """The network as a module in fp32 on the CPU, in evaluation mode."""
    import torch

    from rlfn_pipe.models.rlfn import RLFN

    module = RLFN(spec)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return module.eval().requires_grad_(False)


def load_weights(model: str | Path, scale: float | None = None) -> tuple[ModelSpec, Weights]:
    """As `load`, but as arrays of float32 by the names of the state dict."""
    if isinstance(model, Path) or registry.is_file(model):
        return _load_file(Path(model))
    spec = registry.find(model, 4 if scale is None else scale)
    registry.verify(spec)
    assert spec.path is not None
    found, weights = _load_file(spec.path)
    shape = (spec.scale, spec.channels, spec.mid_channels, spec.blocks)
    if (found.scale, found.channels, found.mid_channels, found.blocks) != shape:
        raise WeightsError(
            f"{spec.path}: holds another network than the index says; install the package again"
        )
    spec = replace(found, name=spec.name, licence=spec.licence, psnr=spec.psnr, input_range=spec.input_range)
    return spec, weights


def _load_file(path: Path) -> tuple[ModelSpec, Weights]:
    weights, notes = read(path)
    spec = detect(weights, notes, str(path))
    return replace(spec, path=path, sha256=registry.file_sha256(path)), weights


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of float32 by the names of the state dict, and notes, of a .safetensors or .pth file of any network.

    Of several state dicts in a file the moving average is taken. Notes are those that `detect` takes as metadata.
    Raises WeightsError when the file is missing, damaged or of another kind, or holds too many values, others than
    floating-point ones, or some that are not finite.
    """
    state, notes = _read(path)
    claimed = sum(math.prod(values.shape) for values in state.values())
    if claimed > _MOST_PARAMETERS:
        raise WeightsError(f"{path}: claims {claimed} values, which no RLFN has; give another file")
    for key, values in state.items():
        floating = values.dtype.kind == "f" if isinstance(values, np.ndarray) else values.is_floating_point()
        if not floating:
            raise WeightsError(
                f"{path}: {key} holds no floating-point values; the file is of another network"
            )
    try:
        weights = {key: _array(value) for key, value in state.items()}
    except (RuntimeError, TypeError, ValueError) as error:
        # Tensors of unusual kinds (sparse, quantised, without data) have the right shape only.
        raise WeightsError(
            f"{path}: holds tensors of a kind that is not read ({type(error).__name__}); save it as fp32"
        ) from error
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise WeightsError(f"{path}: holds values that are not finite; the training that made it went wrong")
    return weights, notes


def _array(value: _Values) -> np.ndarray:
    """Values as an array of float32."""
    if not isinstance(value, np.ndarray):
        value = value.detach().float().cpu().numpy()
    with np.errstate(over="ignore"):  # what float32 cannot hold is found to be infinite
        return np.ascontiguousarray(value, np.float32)


def save(
    path: Path,
    module: torch.nn.Module,
    spec: ModelSpec,
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = True,
) -> str:
    """Write `module` as safetensors (fp32) by way of a temporary file; returns the file's SHA-256.

    `metadata` (text to text) is kept in the file beside name, scale, input range and licence.
    Raises OutputError when `path` cannot be written, or is there and `overwrite` is False; what was
    there before is then untouched.
    """
    import safetensors.numpy

    state = {key: _array(value) for key, value in module.state_dict().items()}
    notes = {
        "format": "pt",
        "name": spec.name,
        "architecture": spec.architecture,
        "scale": str(spec.scale),
        "input_range": repr(spec.input_range),
        "licence": spec.licence,
        **(metadata or {}),
    }
    try:
        write_atomically(path, _ordered(safetensors.numpy.save(state, notes)), overwrite=overwrite)
    except FileExistsError as error:
        raise OutputError(f"{path}: exists already; give -y to replace it") from error
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place"
        ) from error
    return registry.file_sha256(path)


def _ordered(data: bytes) -> bytes:
    """A safetensors file with the keys of its header sorted, so that equal weights make equal files."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def import_file(source: Path, target: Path, overwrite: bool = False) -> ModelSpec:
    """Convert `source` (.pth or .safetensors) to the safetensors file `target`; returns its spec.

    Raises WeightsError when `source` is no RLFN, OutputError when `target` exists and
    `overwrite` is not given, or cannot be written.
    """
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; give -y to replace it")
    spec, module = load_file(source)
    notes = {"imported_from": source.name, "source_sha256": spec.sha256}
    digest = save(target, module, spec, notes, overwrite=overwrite)
    return replace(spec, path=target, sha256=digest)


def stated_range(metadata: Mapping[str, str], where: str) -> float:
    """What values range over by the notes of a file, 1 or 255; WeightsError naming `where` for anything else."""
    try:
        value = float(metadata.get("input_range", "255"))
    except ValueError:
        value = 0.0
    if value not in (1.0, 255.0):
        raise WeightsError(
            f"{where}: states the input range {metadata['input_range']!r}, neither 1 nor 255; correct it"
        )
    return value


def _compare(state: Weights, wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """WeightsError when names or shapes differ from those of the network."""
    for key, shape in wanted.items():
        if key not in state:
            raise WeightsError(
                f"{where}: lacks the tensor {key}; the file is not whole or of another network"
            )
        if state[key].shape != shape:
            raise WeightsError(
                f"{where}: {key} is {state[key].shape} instead of {shape}; the file is of another network"
            )
    extra = sorted(state.keys() - wanted.keys())
    if extra:
        raise WeightsError(
            f"{where}: has tensors that no RLFN has ({extra[0][:60]!r}); the file is of another network"
        )


def _read(path: Path) -> tuple[dict[str, _Values], dict[str, str]]:
    """State dict and metadata of a file; WeightsError when it is missing, damaged or of another kind."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); check the name") from error
    if not path.is_file() or not 0 < size <= _LARGEST:
        raise WeightsError(f"{path}: is no weights file (a file of 1 byte to 512 MiB is expected)")
    try:
        with path.open("rb") as opened:
            start = opened.read(9)
            header = int.from_bytes(start[:8], "little")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    # The content decides, not the name: safetensors begin with a length and a JSON object.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        if not 0 < header <= min(_LARGEST_HEADER, size - 8):
            raise WeightsError(
                f"{path}: is no whole safetensors file (its header would be {header} bytes); fetch it again"
            )
        return _read_safetensors(path)
    return _read_pickle(path)


def _read_safetensors(path: Path) -> tuple[dict[str, _Values], dict[str, str]]:
    try:
        import safetensors
    except ImportError as error:
        raise WeightsError(
            f"{path}: reading it needs the package safetensors; install it or use a .pth"
        ) from error
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
        with safetensors.safe_open(path, framework="np" if kinds <= _ARRAYS else "pt") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return state, opened.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: is no whole safetensors file ({error}); fetch or copy it again"
        ) from error


def _read_pickle(path: Path) -> tuple[dict[str, _Values], dict[str, str]]:
    """State dict and notes of a .pth file, read by torch's loader that makes tensors and plain data only.

    Files and checkpoints of our training say what their values range over; foreign ones do not.
    """
    from torch import Tensor

    from rlfn_pipe.models.pickles import Unreadable, load_plain

    try:
        found = load_plain(path)
    except Unreadable as error:
        raise WeightsError(f"{path}: cannot be used as weights: it {error}; get it again") from error
    notes: dict[str, str] = {}
    if isinstance(found, dict):
        for stated in (found.get("architecture"), found.get("spec")):
            if isinstance(stated, dict):
                notes |= {key: str(stated[key]) for key in ("name", "input_range") if key in stated}
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), found)
        found = {str(key).removeprefix("module."): value for key, value in inner.items()}
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{path}: holds no state dict; give the weights of an RLFN network")
    return found, notes
