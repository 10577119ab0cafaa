"""From INPUT and OUTPUT to items: what is found, in what order, under which names, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlfn_pipe.errors import InputError, OutputError, UsageError
from rlfn_pipe.files import TEMPORARY_SUFFIX
from rlfn_pipe.jobs.inputs import Plan, expand
from rlfn_pipe.jobs.walk import matches
from rlfn_pipe.media.signatures import HEAD_BYTES, IMAGE_FORMATS, sniff


def touch(root: Path, *names: str) -> Path:
    """Empty files: `expand` never looks inside."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def outputs(plan: Plan, root: Path) -> list[str]:
    return [item.output.relative_to(root).as_posix() for item in plan.items]


def sources(plan: Plan, root: Path) -> list[str]:
    return [item.source.relative_to(root).as_posix() for item in plan.items]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return touch(
        tmp_path / "in",
        "img10.png",
        "img2.png",
        "IMG1.JPG",
        "film.mp4",
        "notes.txt",
        ".hidden.png",
        f".img2.png.ab12{TEMPORARY_SUFFIX}",
        "sub/deep/a.tiff",
        "sub/b.webm",
        ".git/c.png",
    )


# -------------------------------------------------------------------- one file


def test_file_to_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.mkv")
    (item,) = expand(f"{tmp_path}/a.png", f"{tmp_path}/new/x.jpg").items
    assert (item.source, item.output, item.kind) == (tmp_path / "a.png", tmp_path / "new/x.jpg", "image")
    (item,) = expand(f"{tmp_path}/b.mkv", f"{tmp_path}/b.mp4").items
    assert item.kind == "video"


def test_file_into_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpeg", "b.mpg", "there/x")
    for output in ("there", "new/"):
        (item,) = expand(f"{tmp_path}/a.jpeg", f"{tmp_path}/{output}").items
        assert item.output == tmp_path / output / "a.jpeg"
    assert expand(f"{tmp_path}/a.jpeg", f"{tmp_path}/there", format="jpg").items[0].output.name == "a.jpeg"
    assert expand(f"{tmp_path}/a.jpeg", f"{tmp_path}/there", format="tif").items[0].output.name == "a.tiff"
    assert expand(f"{tmp_path}/b.mpg", f"{tmp_path}/there", format="png").items[0].output.name == "b.mkv"


@pytest.mark.parametrize(
    ("source", "output", "options", "words"),
    [
        ("a.png", "x", {}, "no extension"),
        ("a.png", "x.mp4", {}, "an image cannot be written"),
        ("a.mp4", "x.png", {}, "a video cannot be written"),
        ("a.png", "x.jpg", {"format": "png"}, "contradicts"),
        ("a.png", "x.png", {"format": "gif"}, "not an image format"),
    ],
)
def test_names_that_contradict(
    tmp_path: Path, source: str, output: str, options: dict[str, str], words: str
) -> None:
    touch(tmp_path, source)
    with pytest.raises(UsageError, match=words):
        expand(f"{tmp_path}/{source}", f"{tmp_path}/{output}", **options)


def test_unknown_extension_is_sniffed(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "clip.bin").write_bytes(b"\0\0\0\x18ftypisom" + bytes(50))
    (tmp_path / "notes.txt").write_bytes(b"hello " * 20)
    assert expand(f"{tmp_path}/photo", f"{tmp_path}/x.png").items[0].kind == "image"
    assert expand(f"{tmp_path}/photo", f"{tmp_path}/d/").items[0].output.name == "photo.png"
    assert expand(f"{tmp_path}/clip.bin", f"{tmp_path}/x.mp4").items[0].kind == "video"
    with pytest.raises(InputError, match="by its name or its content"):
        expand(f"{tmp_path}/notes.txt", f"{tmp_path}/x.png")


def test_strange_names_are_taken_as_they_are(tmp_path: Path) -> None:
    names = ["a [1].png", "@list.png", "ü*?.png", "-s.png", "line\nbreak.png", "$(x);.png", "a.b.c.png"]
    touch(tmp_path, *names)
    for name in names:
        (item,) = expand(f"{tmp_path}/{name}", f"{tmp_path}/out/").items
        assert item.source.name == item.output.name == name
    plan = expand(str(tmp_path), f"{tmp_path}-out")
    assert {item.source.name for item in plan.items} == set(names)


# ---------------------------------------------------------------------- folder


def test_folder_is_mirrored_in_natural_order(tree: Path, tmp_path: Path) -> None:
    plan = expand(str(tree), f"{tmp_path}/out", recursive=True)
    expected = ["film.mp4", "IMG1.JPG", "img2.png", "img10.png", "sub/b.webm", "sub/deep/a.tiff"]
    assert sorted(sources(plan, tree)) == sorted(expected)
    assert sources(plan, tree) == outputs(plan, tmp_path / "out")
    top = [name for name in sources(plan, tree) if "/" not in name]
    assert top == ["film.mp4", "IMG1.JPG", "img2.png", "img10.png"]
    assert [item.kind for item in plan.items].count("video") == 2
    assert any("1 other file (.txt)" in warning for warning in plan.warnings)


def test_folder_without_recursive_says_what_it_leaves(tree: Path, tmp_path: Path) -> None:
    plan = expand(str(tree), f"{tmp_path}/out")
    assert sources(plan, tree) == ["film.mp4", "IMG1.JPG", "img2.png", "img10.png"]
    assert any("--recursive" in warning for warning in plan.warnings)


def test_output_folder_inside_the_input_is_not_swallowed(tree: Path) -> None:
    touch(tree, "out/img2.png", "out/old/x.png")
    plan = expand(str(tree), f"{tree}/out", recursive=True, overwrite=True)
    assert not [name for name in sources(plan, tree) if name.startswith("out/")]
    assert len(plan.items) == 6


def test_loops_end_and_links_are_followed_once(tree: Path, tmp_path: Path) -> None:
    other = touch(tmp_path / "other", "far.png")
    (tree / "loop").symlink_to(tree)
    (tree / "sub" / "up").symlink_to("..")
    (tree / "far").symlink_to(other)
    (tree / "again").symlink_to(other)
    (tree / "dangling.png").symlink_to("nowhere")
    (tree / "linked.png").symlink_to(other / "far.png")
    plan = expand(str(tree), f"{tmp_path}/out", recursive=True)
    names = sources(plan, tree)
    assert len(names) == 6 + 2 and "linked.png" in names
    assert sum(name.endswith("far.png") for name in names) == 1


def test_empty_folders_and_missing_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "texts", "a.txt", "b.txt")
    touch(tmp_path / "deep", "x/y.png")
    (tmp_path / "void").mkdir()
    for name, words in (
        ("void", "holds no images or videos; check"),
        ("texts", r"2 other files \(.txt\) there"),
        ("deep", "--recursive"),
        ("missing", "does not exist"),
        ("missing.png", "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            expand(f"{tmp_path}/{name}", f"{tmp_path}/out")
    with pytest.raises(UsageError, match="empty"):
        expand("", "x")


def test_fifo_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        expand(f"{tmp_path}/pipe.mp4", f"{tmp_path}/out.mp4")


# ------------------------------------------------------------------------ glob


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["img2.png", "img10.png"]),
        ("img?.png", ["img2.png"]),
        ("*.[jJ][pP][gG]", ["IMG1.JPG"]),
        ("**/*", ["film.mp4", "IMG1.JPG", "img2.png", "img10.png", "sub/b.webm", "sub/deep/a.tiff"]),
        ("**/*.tiff", ["sub/deep/a.tiff"]),
        ("sub/**/*.webm", ["b.webm"]),
        ("*/*", ["sub/b.webm"]),
        (".*.png", [".hidden.png"]),
    ],
)
def test_glob(tree: Path, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    plan = expand(f"{tree}/{pattern}", f"{tmp_path}/out")
    assert sorted(outputs(plan, tmp_path / "out")) == sorted(expected)


def test_glob_relative_to_the_working_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    plan = expand("*.png", "../out")
    assert [item.source for item in plan.items] == [Path("img2.png"), Path("img10.png")]
    assert [item.output for item in plan.items] == [Path("../out/img2.png"), Path("../out/img10.png")]


def test_glob_without_matches(tree: Path, tmp_path: Path) -> None:
    for pattern, words in (
        ("*.bmp", "nothing matches"),
        ("none/*", "nothing matches"),
        ("*.txt", "no images"),
    ):
        with pytest.raises(InputError, match=words):
            expand(f"{tree}/{pattern}", f"{tmp_path}/out")


PARTS = st.lists(st.sampled_from(["a", "ab", "b.png", "c"]), min_size=1, max_size=5)
WANTED = st.lists(st.sampled_from(["**", "*", "a*", "?", "*.png"]), min_size=1, max_size=4)


@given(PARTS, WANTED)
def test_matching_agrees_with_stars_written_out(parts: list[str], wanted: list[str]) -> None:
    """The reference: `**` written out as every possible number of `*`, at its end at least one."""
    from fnmatch import fnmatchcase
    from itertools import product

    stars = wanted.count("**")
    expected = False
    for counts in product(range(len(parts) + 1), repeat=stars):
        if wanted[-1] == "**" and counts[-1] == 0:
            continue
        numbers = iter(counts)
        flat = [one for part in wanted for one in (["*"] * next(numbers) if part == "**" else [part])]
        if len(flat) == len(parts) and all(map(fnmatchcase, parts, flat)):
            expected = True
    assert matches(tuple(parts), tuple(wanted)) == expected


# ------------------------------------------------------------------------ list


def test_list(tree: Path, tmp_path: Path) -> None:
    text = "\ufeff# my pictures\r\n\r\nimg2.png\r\nsub/b.webm\n  img10.png  \nimg2.png\n../other/x.png\n"
    (tree / "list.txt").write_text(text, encoding="utf-8", newline="")
    touch(tmp_path / "other", "x.png")
    plan = expand(f"@{tree}/list.txt", f"{tmp_path}/out")
    assert outputs(plan, tmp_path / "out") == ["img2.png", "sub/b.webm", "img10.png", "x.png"]
    assert plan.items[3].source.resolve() == tmp_path / "other" / "x.png"


def test_list_faults_name_the_line(tree: Path, tmp_path: Path) -> None:
    for text, words in (
        ("# x\n\nsub\n", "line 3: .*is a folder"),
        ("notes.txt\n", "line 1: .*no media extension"),
        ("a\0b\n", "line 1: not a path"),
        ("# nothing\n", "names no files"),
    ):
        (tree / "list.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            expand(f"@{tree}/list.txt", f"{tmp_path}/out")
    with pytest.raises(InputError, match=r"list .* does not exist"):
        expand(f"@{tree}/none.txt", f"{tmp_path}/out")


def test_a_missing_file_of_a_list_stops_no_other(tree: Path, tmp_path: Path) -> None:
    (tree / "list.txt").write_text("img2.png\nnone.png\nimg10.png\n")
    plan = expand(f"@{tree}/list.txt", f"{tmp_path}/out")
    assert outputs(plan, tmp_path / "out") == ["img2.png", "none.png", "img10.png"]
    assert [warning.split(", ")[1] for warning in plan.warnings] == [
        f"line 2: {tree}/none.png does not exist"
    ]


def test_list_cannot_lead_out_of_the_output_folder(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path, "evil.png")
    (tree / "list.txt").write_text(f"../evil.png\n{tmp_path}/evil.png\nsub/../../evil.png\n")
    plan = expand(f"@{tree}/list.txt", f"{tmp_path}/out")
    for item in plan.items:
        assert item.output.parent == tmp_path / "out" and ".." not in item.output.parts


def test_link_in_the_output_folder_cannot_lead_out(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="leads out of the output folder"):
        expand(str(tree), f"{tmp_path}/out", recursive=True)


# --------------------------------------------------------------------- outputs


def test_long_names_are_cut_to_what_file_systems_take(tmp_path: Path) -> None:
    """A changed extension may be longer than the old one; numbers for twins need room, too."""
    stem = "ä" * 125 + "x"  # 251 bytes
    tree = touch(
        tmp_path / "in",
        f"{stem}.png",
        f"{stem}.jpg",
        f"{stem}.bmp",
        f"{stem}.flv",
        "e\u0301.flv",
        "\u00e9.mkv",
    )
    plan = expand(str(tree), f"{tmp_path}/out", format="webp")
    names = outputs(plan, tmp_path / "out")
    assert len(set(names)) == 6 and all(len(os.fsencode(name)) <= 255 for name in names)
    for name in names:
        (tmp_path / name).write_bytes(b"")


def test_folders_nested_deeper_than_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(Path("in"), "top.png")
    monkeypatch.chdir("in")
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("deep.png").write_bytes(b"")
    os.chdir(tmp_path)
    names = sources(expand("in", "out", recursive=True), Path("in"))
    # What clears temporary folders away goes down by recursion: this one must not be left to it.
    os.chdir("in" + "/d" * 1200)
    os.unlink("deep.png")
    for _ in range(1200):
        os.chdir("..")
        os.rmdir("d")
    assert sorted(map(len, names)) == [len("top.png"), 2 * 1200 + len("deep.png")]


def test_format_concerns_images_only(tree: Path, tmp_path: Path) -> None:
    plan = expand(str(tree), f"{tmp_path}/out", format="webp", recursive=True)
    names = outputs(plan, tmp_path / "out")
    assert set(names) == {
        "film.mp4",
        "IMG1.webp",
        "img2.webp",
        "img10.webp",
        "sub/b.webm",
        "sub/deep/a.webp",
    }


def test_one_name_for_two_becomes_two(tmp_path: Path) -> None:
    tree = touch(tmp_path / "in", "a.jpg", "a.png", "a.tif", "b.png", "B.PNG", "c.flv", "c.mkv", "a.tif.png")
    plan = expand(str(tree), f"{tmp_path}/out", format="png")
    named = dict(zip(sources(plan, tree), outputs(plan, tmp_path / "out"), strict=True))
    assert named["a.png"] == "a.png" and named["a.jpg"] == "a.jpg.png"
    assert named["a.tif.png"] == "a.tif.png" and named["a.tif"] == "a-3.png"
    assert named["c.mkv"] == "c.mkv" and named["c.flv"] == "c.flv.mkv"
    assert len({name.casefold() for name in named.values()}) == len(named)
    assert len(plan.warnings) == 4
    assert expand(str(tree), f"{tmp_path}/out", format="png") == plan


NAMES = st.lists(
    st.tuples(
        st.sampled_from(["a", "A", "a-2", "a.jpg", "ä", "a\u0308"]),
        st.sampled_from([".png", ".jpg", ".PNG", ".flv"]),
    ),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(NAMES, st.sampled_from(["same", "png", "jpg"]))
def test_outputs_never_share_a_name(names: list[tuple[str, str]], format: str) -> None:
    import tempfile
    import unicodedata

    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder) / "in", *("".join(name) for name in names))
        plan = expand(str(root), f"{folder}/out", format=format)
        folded = {unicodedata.normalize("NFC", item.output.name).casefold() for item in plan.items}
        assert len(folded) == len(plan.items) == len(os.listdir(root))
        assert all(item.output.parent == Path(folder) / "out" for item in plan.items)


def test_existing_outputs(tree: Path, tmp_path: Path) -> None:
    out = touch(tmp_path / "out", "img2.png", "img10.png")
    with pytest.raises(OutputError, match=r"img2.png and 1 more outputs exist; -y"):
        expand(str(tree), str(out))
    assert len(expand(str(tree), str(out), overwrite=True).items) == 4
    plan = expand(str(tree), str(out), skip_existing=True)
    assert sources(plan, tree) == ["film.mp4", "IMG1.JPG"]
    assert [item.source.name for item in plan.skipped] == ["img2.png", "img10.png"]
    with pytest.raises(OutputError, match=r"img2.png exists; -y"):
        expand(f"{tree}/img2.png", str(out))


def test_an_input_is_never_overwritten(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "alias.png").symlink_to(tree / "img2.png")
    for input, output in (
        ("img2.png", f"{tree}/img2.png"),
        ("img2.png", f"{tree}/"),
        ("img2.png", f"{tree}/sub/../img2.png"),
        ("img2.png", f"{tmp_path}/alias.png"),
        ("*.png", str(tree)),
        ("", str(tree)),
    ):
        for leave in (False, True):
            with pytest.raises(OutputError):
                expand(f"{tree}/{input}", output, overwrite=leave, skip_existing=not leave)


def test_output_that_cannot_be_a_folder(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(OutputError, match="is a file"):
        expand(str(tree), f"{tmp_path}/file")
    with pytest.raises(UsageError, match="looks like a file"):
        expand(str(tree), f"{tmp_path}/out.mp4")
    assert expand(str(tree), f"{tmp_path}/out.mp4/").items
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "x" / "img2.png").mkdir(parents=True)
    with pytest.raises(OutputError, match="is a folder"):
        expand(f"{tree}/*.png", f"{tmp_path}/x", overwrite=True)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    touch(tmp_path, "in.mp4")
    os.mkfifo(tmp_path / "out.mp4")
    with pytest.raises(OutputError, match="is a pipe or a device and no file"):
        expand(f"{tmp_path}/in.mp4", f"{tmp_path}/out.mp4", overwrite=True)


# ------------------------------------------------------------------ signatures


def test_signatures_of_real_media(shared_data: Path) -> None:
    """What is named as an image and has an image's signature agrees, over all odd pictures."""
    agreed = 0
    for path in sorted((shared_data / "images").rglob("*.*")):
        expected = IMAGE_FORMATS.get(path.suffix.lower())
        found = sniff(path.read_bytes()[:HEAD_BYTES])
        if expected and found and path.parent.name not in ("misnamed", "tiny"):
            assert found == ("image", expected), path
            agreed += 1
    assert agreed > 200


def test_signature_of_transport_streams() -> None:
    packet = b"G" + bytes(187)
    assert sniff(packet * 4) == sniff((bytes(4) + packet) * 4) == ("video", "mpegts")
    assert sniff(b"G" + bytes(700)) is None


def test_signatures_of_nothing() -> None:
    for head in (
        b"",
        b"\0",
        b"hello world",
        bytes(64),
        b"\xff\xd8",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"Gibberish text" * 4,
    ):
        assert sniff(head) is None, head


def test_a_format_that_is_not_read_is_named_whatever_its_name(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    for name in ("a.heic", "a"):
        (tmp_path / name).write_bytes(heic)
        with pytest.raises(InputError, match="is a HEIC file, which is not read; convert it"):
            expand(str(tmp_path / name), str(tmp_path / "b.png"))
