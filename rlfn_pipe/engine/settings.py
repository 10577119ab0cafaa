"""What an engine's result depends on besides frames and weights, with nothing left to be found out.

"auto" and free memory are looked at once, here. The outcome is plain data, so that a job can write it
down and another process can compute the very same pixels later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

from rlfn_pipe.allowance import cores
from rlfn_pipe.engine.device import (
    Device,
    available_memory,
    device_name,
    resolve_device,
    resolve_precision,
    torch_version,
)
from rlfn_pipe.errors import UsageError
from rlfn_pipe.types import AnyDevice

__all__ = ["JSON", "Settings"]

JSON = str | int | float | bool | None

#: Bytes of the budget on the CPU, however much is free: 1920x1080 at x4 is one whole frame in bf16.
MOST_MEMORY = 1152 << 20
_COMPILE = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved settings of an engine. Equal settings and inputs give equal pixels, memory permitting.

    `tile` (None: chosen by `budget`, 0: whole frames), `overlap` (None: by the tile) and `batch` (None: by
    `budget`) are rules that depend on nothing else. `budget` is the bytes that activations may take.
    `compile` is "on" or "off". Of `device` its kind decides, cpu, cuda or mps; which one of several it is, does not.
    `device_name`, `torch` and `instructions` (of the CPU, and the form of the
    network) say what machine it was; they are found afresh each time, never pinned.
    """

    device: str
    precision: str
    tile: int | None
    overlap: int | None
    batch: int | None
    budget: int
    threads: int
    tta: bool
    compile: str
    device_name: str = ""
    torch: str = ""
    instructions: str = ""

    @classmethod
    def resolve(
        cls,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        budget: int | None = None,
        threads: int | None = None,
        tta: bool = False,
        compile: str = "auto",
        form: Callable[[Device, str], str] | None = None,
    ) -> Settings:
        """Look at the machine where something is left open (None or "auto").

        `form` names the form that networks have on a device in a precision.
        Raises UsageError for a setting that is impossible here.
        """
        found, _ = resolve_device(device)
        chosen, _ = resolve_precision(precision, found)
        if overlap is not None and overlap < 0:
            raise UsageError(f"--overlap {overlap} is negative; use 0 or more")
        least = (overlap or 0) + 12
        if tile is not None and tile != 0 and tile < least:
            raise UsageError(f"--tile {tile} is too small for the overlap; use 0 or at least {least}")
        if batch is not None and batch < 1:
            raise UsageError(f"--batch {batch} is too small; use 1 or more")
        if compile not in _COMPILE:
            raise UsageError(f"--compile {compile} is not known; use {', '.join(_COMPILE)}")
        return cls(
            device=str(found),
            precision=chosen,
            tile=tile,
            overlap=overlap,
            batch=batch,
            budget=memory_budget(found) if budget is None else budget,
            threads=threads or cores(),
            tta=tta,
            compile="on" if compile == "on" else "off",
            device_name=device_name(found),
            torch=torch_version(),
            instructions=_instructions(found, form(found, chosen) if form else ""),
        )

    @classmethod
    def pinned(
        cls,
        values: Mapping[str, JSON],
        device: str,
        form: Callable[[Device, str], str] | None = None,
    ) -> Settings:
        """The settings that `to_dict` wrote, on the machine of now; `device` and `form` as in `resolve`.

        Raises UsageError when `values` holds something else, the device is not there or one of another kind.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise UsageError(f"the recorded engine settings lack {', '.join(missing)}; start the job anew")
        open_ones = {name: values[name] for name in names if name not in (*_MACHINE, "device")}
        # What to_dict wrote has the right types.
        found = cls.resolve(device=device, **open_ones, form=form)  # type: ignore[arg-type]
        if found.found.type != values["device"]:
            raise UsageError(
                f"--device {device} is {found.found.type} here, and the work was begun on {values['device']}; "
                f"give --device {values['device']}, or start the job anew"
            )
        return found

    @property
    def found(self) -> Device:
        """`device` in its parts."""
        kind, _, index = self.device.partition(":")
        return Device(kind, int(index) if index else None)

    def to_dict(self) -> dict[str, JSON]:
        """All settings as plain JSON values, of the device its kind; `pinned` gives them back."""
        return {**asdict(self), "device": self.found.type}


_MACHINE = ("device_name", "torch", "instructions")


def _instructions(device: Device, form: str) -> str:
    """The form, and what PyTorch's operators are chosen by where they compute it on the CPU."""
    if device.type != "cpu" or not form or form.startswith("native"):
        return form
    import torch

    return f"{torch.backends.cpu.get_cpu_capability()}, {form}"


def memory_budget(device: AnyDevice) -> int:
    """Bytes that activations may take on `device`, by what is free now."""
    free = available_memory(device)
    if device.type == "cuda":
        return int(free * 0.6)
    return min(free // 4, MOST_MEMORY)
