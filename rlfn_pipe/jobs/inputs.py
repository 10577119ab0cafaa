"""From INPUT and OUTPUT of the command to a list of items, without opening one file.

INPUT is a file, a folder, a glob in quotes (`"dir/**/*.png"`), or `@list.txt`: one path a line,
`#` begins a comment line, relative paths count from the list's own folder. A path that exists is
taken as it is, whatever signs are in its name. OUTPUT is a file for one input file, and a folder
for everything else; below it the folders of INPUT are mirrored.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from rlfn_pipe.errors import InputError, OutputError, UsageError
from rlfn_pipe.jobs.temporary import check_place
from rlfn_pipe.jobs.walk import Walk, identity_of, is_same, matches
from rlfn_pipe.media.signatures import (
    IMAGE_EXTENSIONS,
    IMAGE_FORMATS,
    Kind,
    foreign_name,
    format_named,
    read_head,
    sniff,
)

#: Extensions that are taken for video, lower case with dot.
VIDEO_EXTENSIONS: frozenset[str] = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".m2v", ".vob"}
    | {".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".ogg", ".mxf", ".nut", ".ivf", ".y4m", ".gif", ".dv"}
    | {".h264", ".264", ".h265", ".hevc", ".265", ".obu", ".rm", ".rmvb"}
)

#: Video extensions that a file in a folder keeps; any other becomes `FALLBACK_VIDEO_EXTENSION`.
WRITABLE_VIDEO_EXTENSIONS: frozenset[str] = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".nut"}
)
FALLBACK_VIDEO_EXTENSION = ".mkv"

_GLOB_SIGNS = frozenset("*?[")

#: Bytes of a file name that the usual file systems take.
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Item:
    """One file to upscale and where its result goes."""

    source: Path
    output: Path
    kind: Kind


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in natural order. `skipped` are items whose output exists already."""

    items: tuple[Item, ...]
    skipped: tuple[Item, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A source, the place below the output folder that mirrors it, and what it is taken for."""

    source: Path
    place: PurePath
    kind: Kind


def expand(
    input: str,
    output: str,
    *,
    recursive: bool = False,
    format: str = "same",
    skip_existing: bool = False,
    overwrite: bool = False,
    resumable: Callable[[Path], bool] = lambda output: False,
) -> Plan:
    """Find the files that INPUT means and name an output for each.

    `recursive` enters the subfolders of a folder. `format` is an image format ("png", "jpg", ...) or
    "same"; it does not concern videos. Inputs whose outputs would have one name (also when they
    differ only in case) get distinct names, said in `warnings`. `resumable` says of an output that
    exists whether earlier work on it may go on, which decides itself about replacing it.

    Raises:
        UsageError: `format` is unknown, or OUTPUT's name contradicts INPUT or `format`.
        InputError: INPUT is missing, matches nothing or holds no media; a list has a bad line.
        OutputError: an output is an input, exists without leave to replace it, or lies outside OUTPUT.
    """
    if format != "same":
        format = format_named(format)
    if not input or not output or "\0" in input + output:
        raise UsageError("INPUT and OUTPUT must not be empty or hold a NUL; name a file or a folder")
    path = Path(input)
    warnings: list[str] = []
    if os.path.isfile(path):
        return _settled([_one_file(path, output, format)], skip_existing, overwrite, warnings, resumable)
    if os.path.isdir(path):
        found = _in_folder(path, Path(output), recursive, warnings)
    elif input.startswith("@"):
        found = _in_list(Path(input[1:]), warnings)
    elif _GLOB_SIGNS.intersection(input):
        found = _in_glob(input, Path(output), warnings)
    else:
        raise InputError(f"{input} {_fault(path)}")
    folder = _output_folder(output)
    items = _named(found, folder, format, warnings)
    _refuse_escapes(items, folder)
    return _settled(items, skip_existing, overwrite, warnings, resumable)


def kind_of(path: Path) -> Kind | None:
    """Image or video by the extension; None for any other."""
    extension = path.suffix.lower()
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return "video" if extension in VIDEO_EXTENSIONS else None


def _fault(path: Path) -> str:
    """Why a path that is neither file nor folder cannot be taken, and what to do."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist; check the path"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"cannot be read ({reason.lower()}); check the path"
    return "is neither a file nor a folder; name a media file"


# -------------------------------------------------------------------- one file


def _one_file(source: Path, output: str, format: str) -> Item:
    kind = kind_of(source) or _sniffed_kind(source)
    target = Path(output)
    if os.path.isdir(target) or output.endswith(("/", os.sep)):
        return Item(source, target / _output_name(source.name, kind, format), kind)
    extension = target.suffix.lower()
    if not extension:
        raise UsageError(f"OUTPUT {output} has no extension; add one, or end it with / to mean a folder")
    if kind == "image" and extension not in IMAGE_EXTENSIONS:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise UsageError(f"an image cannot be written as {target.name}; choose one of {known}")
    if kind == "video" and extension in IMAGE_EXTENSIONS:
        raise UsageError(
            f"a video cannot be written as {target.name}; choose .mp4, .mkv or another video extension"
        )
    if kind == "image" and format not in ("same", IMAGE_FORMATS[extension]):
        raise UsageError(f"--format {format} contradicts the name {target.name}; leave one of them out")
    return Item(source, target, kind)


def _sniffed_kind(source: Path) -> Kind:
    head = read_head(source)
    found = sniff(head)
    if found is None:
        if foreign := foreign_name(head):
            raise InputError(f"{source} is a {foreign} file, which is not read; convert it to png first")
        raise InputError(
            f"{source} is no image or video that is known by its name or its content; check the path"
        )
    return found[0]


# ----------------------------------------------------------- folder, glob, list


def _in_folder(folder: Path, output: Path, recursive: bool, warnings: list[str]) -> list[_Found]:
    if is_same(folder, output):
        raise OutputError(f"OUTPUT {output} is the INPUT folder itself; choose another folder")
    walk = Walk(folder, output, None if recursive else 1)
    found, others = _media_only(walk.files(), folder)
    warnings += [*walk.warnings, *_dangling(walk.dangling)]
    if not found:
        hint = "add --recursive to enter its folders" if walk.unentered else "check the path"
        raise InputError(f"{folder} holds no images or videos{_count(others, ' (', ' there)')}; {hint}")
    if walk.unentered:
        warnings.append(f"{walk.unentered} folders in {folder} are not entered; --recursive enters them")
    if others:
        warnings.append(f"{_count(others)} in {folder} left out: of no kind that is read")
    return found


def _in_glob(pattern: str, output: Path, warnings: list[str]) -> list[_Found]:
    parts = PurePath(pattern).parts
    first = next(i for i, part in enumerate(parts) if _GLOB_SIGNS.intersection(part))
    base, wanted = Path(*parts[:first]), parts[first:]
    matched: list[Path] = []
    if os.path.isdir(base):
        hidden = any(part.startswith(".") for part in wanted)
        walk = Walk(base, output, None if "**" in wanted else len(wanted), hidden)
        matched = [path for path in walk.files() if matches(path.relative_to(base).parts, wanted)]
        dangling = [path for path in walk.dangling if matches(path.relative_to(base).parts, wanted)]
        warnings += [*walk.warnings, *_dangling(dangling)]
    if not matched:
        raise InputError(f"nothing matches {pattern}; check the pattern, and keep it in quotes")
    found, others = _media_only(matched, base)
    if not found:
        raise InputError(f"{pattern} matches no images or videos{_count(others, ' (', ')')}; check it")
    if others:
        warnings.append(f"{_count(others)} matched by {pattern} left out: of no kind that is read")
    return found


def _dangling(links: list[Path]) -> list[str]:
    """What to say of links that lead nowhere and are called like media."""
    named = sorted(link for link in links if kind_of(link) is not None)
    return [f"{link} is a link that leads nowhere and is left out" for link in named]


def _in_list(file: Path, warnings: list[str]) -> list[_Found]:
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except FileNotFoundError:
        raise InputError(f"the list {file} does not exist; check the path after @") from None
    except OSError as error:
        raise InputError(f"the list {file} cannot be read ({error.strerror or error}); check it") from error
    found: list[_Found] = []
    seen: set[Path] = set()
    for number, line in enumerate(lines, 1):
        text = os.fsdecode(line).strip()
        if not text or text.startswith("#"):
            continue
        if "\0" in text:
            raise InputError(f"{file}, line {number}: not a path; a list is a text file with one path a line")
        source = file.parent / text
        if os.path.isdir(source):
            raise InputError(
                f"{file}, line {number}: {source} is a folder, a list names files; correct the line"
            )
        kind = kind_of(source)
        if kind is None:
            raise InputError(f"{file}, line {number}: {source} has no media extension; correct the line")
        if not os.path.isfile(source):
            # It fails when its turn comes, and the others are made.
            warnings.append(f"{file}, line {number}: {source} {_fault(source).split(';')[0]}")
        if source not in seen:
            seen.add(source)
            place = PurePath(text)
            inside = not place.is_absolute() and ".." not in place.parts
            found.append(_Found(source, place if inside else PurePath(place.name), kind))
    if not found:
        raise InputError(f"the list {file} names no files; write one path a line")
    return found


def _media_only(paths: Iterable[Path], base: Path) -> tuple[list[_Found], Counter[str]]:
    """The media among `paths`, and how many others there are by extension."""
    found: list[_Found] = []
    others: Counter[str] = Counter()
    for path in paths:
        kind = kind_of(path)
        if kind is None:
            others[path.suffix.lower() or "no extension"] += 1
        else:
            found.append(_Found(path, path.relative_to(base), kind))
    return found, others


def _count(others: Counter[str], before: str = "", after: str = "") -> str:
    """`3 other files (.txt, .db)` between `before` and `after`; nothing for none."""
    if not others:
        return ""
    total = sum(others.values())
    kinds = ", ".join(extension for extension, _ in others.most_common(3))
    more = ", ..." if len(others) > 3 else ""
    return f"{before}{total} other file{'s' * (total > 1)} ({kinds}{more}){after}"


# --------------------------------------------------------------------- outputs


def _output_folder(output: str) -> Path:
    folder = Path(output)
    if os.path.isfile(folder):
        raise OutputError(f"OUTPUT {output} is a file; several inputs need a folder, name one")
    if not os.path.exists(folder) and not output.endswith(("/", os.sep)) and kind_of(folder) is not None:
        raise UsageError(f"OUTPUT {output} looks like a file; several inputs need a folder (end it with /)")
    return folder


def _output_name(name: str, kind: Kind, format: str) -> str:
    path = PurePath(name)
    extension = path.suffix.lower()
    if kind == "image":
        if format == "same":
            return name if extension in IMAGE_EXTENSIONS else f"{name}.png"
        return name if IMAGE_FORMATS.get(extension) == format else f"{path.stem}.{format}"
    return name if extension in WRITABLE_VIDEO_EXTENSIONS else f"{path.stem}{FALLBACK_VIDEO_EXTENSION}"


def _named(found: list[_Found], folder: Path, format: str, warnings: list[str]) -> list[Item]:
    """Items with distinct output names, compared as a file system that ignores case would."""
    names = [
        one.place.with_name(_fitting(*_split(_output_name(one.place.name, one.kind, format))))
        for one in found
    ]
    # A file that keeps its name has the first claim to it.
    order = sorted(range(len(found)), key=lambda i: names[i] != found[i].place)
    taken: dict[str, PurePath] = {}
    for i in order:
        place, wanted = found[i].place, names[i]
        candidate, number = wanted, 1
        while _folded(candidate) in taken:
            number += 1
            changed = number == 2 and place.suffix.lower() != wanted.suffix.lower()
            stem, end = (place.name, "") if changed else (wanted.stem, f"-{number}")
            candidate = wanted.with_name(_fitting(stem, end + wanted.suffix))
        if candidate != wanted:
            warnings.append(
                f"{found[i].source} is written as {candidate}: another file's output is {taken[_folded(wanted)]}"
            )
        taken[_folded(candidate)] = candidate
        names[i] = candidate
    return [Item(one.source, folder / name, one.kind) for one, name in zip(found, names, strict=True)]


def _split(name: str) -> tuple[str, str]:
    path = PurePath(name)
    return path.stem, path.suffix


def _fitting(stem: str, end: str) -> str:
    """`stem + end`, the stem cut so that file systems take the name (a changed extension may be longer)."""
    room = _LONGEST_NAME - len(os.fsencode(end))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + end


def _folded(place: PurePath) -> str:
    return unicodedata.normalize("NFC", place.as_posix()).casefold()


def _refuse_escapes(items: list[Item], folder: Path) -> None:
    """A link inside the output folder must not lead the results out of it."""
    # Unlike Path.resolve, realpath takes links that lead in a circle as they are.
    root = Path(os.path.realpath(folder))
    for parent in {item.output.parent for item in items}:
        if not Path(os.path.realpath(parent)).is_relative_to(root):
            raise OutputError(f"{parent} leads out of the output folder {folder}; remove that link")


def _settled(
    items: list[Item],
    skip_existing: bool,
    overwrite: bool,
    warnings: list[str],
    resumable: Callable[[Path], bool],
) -> Plan:
    sources = {identity for item in items if (identity := identity_of(item.source)) is not None}
    existing = [item for item in items if os.path.lexists(item.output)]
    for item in existing:
        if identity_of(item.output) in sources:
            raise OutputError(f"{item.output} is also an input and would be lost; choose another OUTPUT")
        check_place(item.output)
    if existing and skip_existing:
        kept = set(existing)
        return Plan(tuple(item for item in items if item not in kept), tuple(existing), tuple(warnings))
    refused = [] if overwrite else [item for item in existing if not resumable(item.output)]
    if refused:
        more = f" and {len(refused) - 1} more outputs exist" if len(refused) > 1 else " exists"
        raise OutputError(f"{refused[0].output}{more}; -y overwrites, --skip-existing leaves what is there")
    return Plan(tuple(items), (), tuple(warnings))
