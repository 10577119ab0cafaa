"""What went wrong, each kind once, with the input that did it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


class Finds:
    """Finds of one target. Kinds are told apart by their text without numbers and paths."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder, self._target = folder, target
        self.texts: dict[str, str] = {}
        self.tried = 0

    def add(self, text: str, source: bytes, suffix: str = "") -> None:
        """Note a find, and keep the input of the first of its kind."""
        kind = re.sub(r"/\S+|\d+", "", text)[-400:]
        if kind in self.texts:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = self._folder / f"{self._target}-{hashlib.sha256(source).hexdigest()[:10]}{suffix}"
        kept.write_bytes(source)
        self.texts[kind] = f"{kept}:\n{text}"

    def report(self) -> str:
        return f"{len(self.texts)} finds in {self.tried} tries\n\n" + "\n\n".join(self.texts.values())
