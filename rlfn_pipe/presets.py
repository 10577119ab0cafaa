"""Presets: TOML files that set options by their names, and the one place where options are resolved.

A preset file holds the keys of `rlfn_pipe.options` (`crf = 23`, `encoder-preset = "slow"`) and an
optional `description`. What is given explicitly wins over the preset, the preset over the default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlfn_pipe.errors import UsageError
from rlfn_pipe.options import EXCLUSIVE, UpscaleOptions, option_info, option_infos, option_names, parse_option
from rlfn_pipe.resources import data_path

DESCRIPTION = "description"
#: Options that speak to one particular encoder: a preset's are dropped when another codec is asked for.
_OF_THE_CODEC = ("crf", "encoder_preset", "encoder_option", "pix_fmt")
_LARGEST_FILE = 64 * 1024


@dataclass(frozen=True)
class Preset:
    """A preset as read and checked: `values` are typed option values by option name."""

    name: str
    path: Path
    description: str
    values: Mapping[str, Any]


def preset_names() -> tuple[str, ...]:
    """Names of the presets that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in data_path("presets").glob("*.toml")))


def load_preset(name: str) -> Preset:
    """The preset of that name, or the one in that `.toml` file.

    Raises `UsageError` when there is none, or when the file is not TOML, has an unknown key, or a
    value outside its option's range.
    """
    path = _find(name)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"preset {path} is larger than {_LARGEST_FILE} bytes; is it a preset file?")
        if not path.is_file():
            raise UsageError(f"preset {path} cannot be read: it is no file")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"preset {path} cannot be read: {reason}") from error
    # A plain ValueError: a number of thousands of digits; RecursionError: brackets in brackets.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"preset {path} is not valid TOML: {error}") from error

    description = table.pop(DESCRIPTION, "")
    if not isinstance(description, str):
        raise UsageError(f"preset {path}: {DESCRIPTION} must be text")
    allowed = {info.key: info.name for info in option_infos() if info.in_preset}
    values: dict[str, Any] = {}
    for key, value in table.items():
        known = key.replace("_", "-")
        if known not in allowed:
            raise UsageError(f"preset {path}: {_refusal(key, known, allowed)}")
        if allowed[known] in values:
            raise UsageError(f"preset {path}: {key} is given twice")
        values[allowed[known]] = parse_option(allowed[known], value, where=f"preset {path}")
    if "model" in values:
        values["model"] = _model(values["model"], path)
    return Preset(path.stem, path, description, values)


def resolve(explicit: Mapping[str, Any], preset: str | None = None) -> UpscaleOptions:
    """Options from what was given explicitly, a preset (name or file), and the defaults.

    `explicit` maps option names to text or typed values; None means not given. An explicit option
    replaces the preset's options that it excludes (`--height` a preset's scale), and an explicit
    codec those that were meant for the preset's codec; `encoder_option` pairs are merged by key.
    Raises `UsageError`.
    """
    names = option_names()
    for name in explicit:
        if name not in names:
            raise UsageError(f"there is no option {name!r}{_nearest(name, names)}")
    given = {name: parse_option(name, value) for name, value in explicit.items() if value is not None}
    preset = preset if preset is not None else given.get("preset")
    given.pop("preset", None)
    if preset is None:
        return UpscaleOptions(**given)

    preset = parse_option("preset", preset)
    base = dict(load_preset(preset).values)
    for one, other in EXCLUSIVE:
        if given.get(one) not in (None, False):
            base.pop(other, None)
        if given.get(other) not in (None, False):
            base.pop(one, None)
    if "codec" in given and given["codec"] != base.get("codec", option_info("codec").default):
        for name in _OF_THE_CODEC:
            base.pop(name, None)
    if "encoder_option" in given and "encoder_option" in base:
        pairs = dict(base["encoder_option"]) | dict(given["encoder_option"])
        given["encoder_option"] = tuple(pairs.items())
    return UpscaleOptions(**{**base, **given, "preset": preset})


def without_effect(options: UpscaleOptions, present: Collection[str]) -> dict[str, list[str]]:
    """Options that were given, not by a preset, and that are about nothing that is `present`.

    Their long names by what they are about, see `OptionInfo.about`.
    """
    preset = load_preset(options.preset).values if options.preset else {}
    found: dict[str, list[str]] = {}
    for info in option_infos():
        given = getattr(options, info.name) not in (info.default, preset.get(info.name))
        if given and info.about and info.about not in present:
            found.setdefault(info.about, []).append(info.long)
    return found


def _find(name: str) -> Path:
    """The file of a preset: a path when it looks like one, else one of those that ship."""
    if name.lower().endswith(".toml") or "/" in name or "\\" in name:
        return Path(name)
    path = data_path("presets") / f"{name}.toml"
    if not path.is_file():
        names = preset_names()
        shipped = ", ".join(names) if names else "none found"
        raise UsageError(
            f"there is no preset {name!r}{_nearest(name, names)} (presets: {shipped}, or a .toml file)"
        )
    return path


def _model(model: str, preset: Path) -> str:
    """The model that a preset may name: a network of the list, or a file in the preset's own folder."""
    if not any(sign in model for sign in "/\\") and not model.endswith((".safetensors", ".pth", ".pt")):
        return model
    folder = Path(os.path.realpath(preset.parent))
    file = Path(os.path.realpath(preset.parent / model))
    if Path(model).is_absolute() or not file.is_relative_to(folder):
        raise UsageError(
            f"preset {preset}: model must be a network's name or a file beside the preset, not {model};"
            " give --model on the command line"
        )
    return str(preset.parent / model)


def _refusal(key: str, known: str, allowed: Iterable[str]) -> str:
    if known.replace("-", "_") in option_names():
        return f"{key} belongs to one run and cannot be in a preset; give it on the command line"
    return f"unknown key {key!r}{_nearest(known, (*allowed, DESCRIPTION))}"


def _nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean X?" for the nearest known word, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""
