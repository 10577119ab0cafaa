"""A network in the number formats that an engine asks for, each built when it is first wanted."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rlfn_pipe.engine.arrays import Arrays
from rlfn_pipe.engine.host import Host
from rlfn_pipe.engine.network import (
    HostFactory,
    Memorable,
    Network,
    NetworkFactory,
    Remembering,
    SideBySide,
)

__all__ = ["Forms"]


@dataclass(slots=True)
class _Form:
    """A network in a number format, and what it can do besides, which Python takes long to ask a protocol's parts for.

    `remembering` is made when it is first wanted.
    """

    network: Network
    beside: SideBySide | None
    memorable: Memorable | None
    remembering: Remembering | None = None


class Forms:
    """The forms of one network on a device; `precision` is what is meant where none is named. For several threads.

    `arrays` says how they take pictures: as numpy arrays (`on_host`) where the factory serves device and precision so.
    """

    def __init__(self, factory: NetworkFactory, device: str, precision: str) -> None:
        self._factory, self._device, self._precision = factory, device, precision
        self._host: HostFactory | None = None
        if isinstance(factory, HostFactory) and factory.serves(device, precision):
            self._host = factory
        self.on_host = self._host is not None
        self.arrays: Arrays = Host() if self._host else _tensors(device)
        self._made: dict[tuple[str, bool], _Form] = {}
        self._building = threading.RLock()

    def network(self, edge_fp32: bool, precision: str) -> Network:
        """The network in a number format; `edge_fp32` as in `NetworkFactory`."""
        return self._form(edge_fp32, precision).network

    def beside(self, edge_fp32: bool = False) -> SideBySide | None:
        """The network where it has threads of its own."""
        return self._form(edge_fp32, self._precision).beside

    def remembering(self, edge_fp32: bool, limit: int) -> Remembering | None:
        """The network with a memory of the last frame of up to `limit` bytes, where it can be had so."""
        form = self._form(edge_fp32, self._precision)
        with self._building:
            if form.remembering is None and form.memorable is not None:
                form.remembering = form.memorable.remembering(limit)
            return form.remembering

    def forget(self) -> bool:
        """Hand back all memory that networks keep for the next frame. False when they kept none."""
        with self._building:
            made = tuple(self._made.values())
        keepers = [keeper for form in made for keeper in (form.remembering, form.beside)]
        kept = [keeper.forget() for keeper in keepers if keeper is not None]
        return any(kept)

    def _form(self, edge_fp32: bool, precision: str) -> _Form:
        key = (precision, edge_fp32 and precision != "fp32")
        with self._building:
            if key not in self._made:
                made = self._host.host(*key) if self._host else self._on_device(*key)
                self._made[key] = _Form(
                    made,
                    made if isinstance(made, SideBySide) else None,
                    made if isinstance(made, Memorable) else None,
                )
            return self._made[key]

    def _on_device(self, precision: str, edge_fp32: bool) -> Network:
        from rlfn_pipe.engine.tensors import DTYPES

        return self._factory(DTYPES[precision], edge_fp32, self._device)


def _tensors(device: str) -> Arrays:
    """Tensors on a device, which are imported only where they are wanted."""
    import torch

    from rlfn_pipe.engine.tensors import Tensors

    return Tensors(torch.device(device))
