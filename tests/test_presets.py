"""Presets: the options' own keys, explicit over preset over default, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlfn_pipe.errors import UsageError
from rlfn_pipe.options import UpscaleOptions
from rlfn_pipe.presets import load_preset, preset_names, resolve


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_four_presets_ship() -> None:
    assert preset_names() == ("archive", "fast", "quality", "web")


@pytest.mark.parametrize("name", ["archive", "fast", "quality", "web"])
def test_shipped_presets_load_and_say_what_they_are(name: str) -> None:
    preset = load_preset(name)
    assert preset.description and preset.values
    options = resolve({}, name)
    assert options.preset == name
    for key, value in preset.values.items():
        assert getattr(options, key) == value


def test_explicit_over_preset_over_default(tmp_path: Path) -> None:
    preset = write(tmp_path, 'crf = 30\ntile = 96\npix_fmt = "yuv444p"\nencoder-preset = "slow"\n')
    options = resolve({"crf": "12", "tile": "auto", "batch": None}, preset)
    assert (options.crf, options.tile, options.pix_fmt, options.encoder_preset) == (
        12,
        None,
        "yuv444p",
        "slow",
    )
    assert options.batch is None and options.codec == "auto"
    assert resolve({"crf": 12}) == UpscaleOptions(crf=12)


def test_a_preset_among_the_explicit_options_counts() -> None:
    assert resolve({"preset": "archive"}).codec == "ffv1"


def test_an_explicit_option_replaces_what_it_excludes(tmp_path: Path) -> None:
    preset = write(tmp_path, "scale = 2\nsample = 3\nverbose = true\nskip-existing = true\n")
    options = resolve({"height": "720", "frames": 5, "quiet": True, "overwrite": True}, preset)
    assert options.scale is None and options.height == 720
    assert options.sample is None and options.frames == 5
    assert options.quiet and not options.verbose and options.overwrite and not options.skip_existing


def test_another_codec_drops_what_was_meant_for_the_presets_codec() -> None:
    options = resolve({"codec": "libsvtav1"}, "web")
    assert options.crf is None and options.encoder_preset is None and options.pix_fmt == "auto"
    assert options.quality == 85
    assert resolve({"codec": "libx264"}, "web").crf == 23
    assert resolve({"codec": "libsvtav1", "crf": 40}, "web").crf == 40


def test_values_are_compared_whatever_their_spelling(tmp_path: Path) -> None:
    assert resolve({"codec": " LIBX265"}, write(tmp_path, 'codec = "libx265"\ncrf = 23\n')).crf == 23
    assert resolve({"codec": "Auto"}, write(tmp_path, "crf = 23\n")).crf == 23


def test_encoder_options_are_merged_by_key() -> None:
    options = resolve({"encoder_option": ["g=12", "slices=4"]}, "archive")
    assert options.encoder_options == {"level": "3", "slicecrc": "1", "g": "12", "slices": "4"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("encoder-prset = 'slow'", "unknown key 'encoder-prset', did you mean 'encoder-preset'?"),
        ("qqqq = 1", "unknown key 'qqqq'"),
        ("log-file = 'x'", "log-file belongs to one run"),
        ("preset = 'web'", "preset belongs to one run"),
        ("scale = 0", "scale must be a number from 1 to 8, not 0"),
        ("crf = 1\ncrf = 2", "not valid TOML"),
        ("pix-fmt = 'yuv420p'\npix_fmt = 'yuv420p'", "given twice"),
        ("description = 3", "description must be text"),
        ("[video]\ncrf = 1", "unknown key 'video'"),
        ("x", "not valid TOML"),
    ],
)
def test_bad_presets_name_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        resolve({}, path)
    assert words in str(caught.value) and path in str(caught.value)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no preset 'qualty', did you mean 'quality'"):
        resolve({}, "qualty")


def test_unreadable_presets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        resolve({}, str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="cannot be read"):
        resolve({}, f"{tmp_path}/")
    (tmp_path / "latin.toml").write_bytes(b"description = '\xe9'")
    with pytest.raises(UsageError, match="not UTF-8"):
        resolve({}, str(tmp_path / "latin.toml"))
    with pytest.raises(UsageError, match="larger than"):
        resolve({}, write(tmp_path, "# " + "x" * 70_000))


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no option 'scal', did you mean 'scale'"):
        resolve({"scal": 2})
