"""Weights: detection, damaged and hostile files, the registry, fetching from a (local) server."""

from __future__ import annotations

import functools
import http.server
import json
import os
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from rlfn_pipe.cli.app import main
from rlfn_pipe.errors import OutputError, UsageError, WeightsError
from rlfn_pipe.files import cache_folder
from rlfn_pipe.models import fetch, official, registry, weights
from rlfn_pipe.models.architectures import ARCHITECTURES, architecture, shapes
from rlfn_pipe.models.rlfn import RLFN


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, or leaves anything in, the user's cache."""
    monkeypatch.setenv("RLFN_PIPE_CACHE", str(tmp_path / "cache"))


def make(name: str = "rlfn-ntire", scale: int = 4) -> RLFN:
    torch.manual_seed(7)
    return RLFN(architecture(name, scale))


def test_shipped_weights_are_whole_and_load() -> None:
    shipped = [spec for spec in registry.models() if not spec.name.startswith("official")]
    assert ("rlfn-s", 4) in {(spec.name, spec.scale) for spec in shipped}
    for spec in shipped:
        registry.verify(spec)
        loaded, module = weights.load(spec.name, spec.scale)
        assert loaded == spec
        assert not module.training
        assert registry.details(spec)["recipe"].startswith("presets/training/")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saved_weights_come_back_with_their_spec(name: str, suffix: str, tmp_path: Path) -> None:
    module, path = make(name, 3), tmp_path / f"file{suffix}"
    if suffix == ".pth":
        torch.save(module.state_dict(), path)
    else:
        weights.save(path, module, replace(module.spec, licence="CC0"))
    spec, loaded = weights.load(path)
    assert (spec.name, spec.scale, spec.blocks) == (name, 3, module.spec.blocks)
    # A file that says nothing is taken for a foreign one, with values in 0..255.
    assert spec.input_range == (255.0 if suffix == ".pth" else 1.0)
    assert spec.sha256 == registry.file_sha256(path)
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    notes = {f"note {number}": "ä" for number in range(8)}
    digests = {weights.save(tmp_path / f"{n}.safetensors", make(), make().spec, notes) for n in range(3)}
    assert len(digests) == 1


@pytest.mark.parametrize("wrapper", ["params_ema", "state_dict"])
def test_wrapped_and_prefixed_state_dicts_load(wrapper: str, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in make().state_dict().items()}
    torch.save({wrapper: state, "iter": 5}, tmp_path / "file.pth")
    assert weights.load(tmp_path / "file.pth")[0].name == "rlfn-ntire"


def test_official_files_load(shared_data: Path) -> None:
    for file in official.OFFICIAL:
        spec, _ = weights.load(shared_data / "weights" / file.file)
        expected = file.spec()
        assert (spec.name, spec.scale, spec.parameters) == (file.network, expected.scale, expected.parameters)
        assert (spec.sha256, spec.input_range) == (file.sha256, 255.0)


class Hostile:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.trace,)


def damaged_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.pth"
    torch.save(make().state_dict(), whole)
    data = whole.read_bytes()
    safe = folder / "whole.safetensors"
    weights.save(safe, make(), make().spec)
    nan = make()
    with torch.no_grad():
        nan.conv_1.bias[0] = float("nan")
    contents: dict[str, object] = {
        "empty.pth": b"",
        "text.pth": b"this is a letter, not a network\n" * 5,
        "half.pth": data[: len(data) // 2],
        "half.safetensors": safe.read_bytes()[: len(safe.read_bytes()) // 2],
        "text.safetensors": b"hello hello hello hello",
        "hostile.pth": pickle.dumps(Hostile(folder / "ran")),
        "hostile_zip.pth": {"conv_1.weight": Hostile(folder / "ran")},
        "numbers.pth": {"a": 1},
        "list.pth": [1, 2],
        "other_network.pth": torch.nn.Conv2d(3, 3, 3).state_dict(),
        "missing.pth": {k: v for k, v in make().state_dict().items() if k != "conv_2.bias"},
        "extra.pth": {**make().state_dict(), "conv_9.weight": torch.zeros(1)},
        "odd_shape.pth": {**make().state_dict(), "conv_2.bias": torch.zeros(3)},
        "integers.pth": {**make().state_dict(), "conv_2.bias": torch.zeros(46, dtype=torch.int64)},
        "scale_5.pth": {**make().state_dict(), "upsampler.0.weight": torch.zeros(75, 46, 3, 3)},
        "nan.pth": nan.state_dict(),
    }
    for name, content in contents.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(content, folder / name)
    (folder / "folder.pth").mkdir()
    return {name: folder / name for name in [*contents, "folder.pth", "absent.pth"]}


def test_files_that_are_no_rlfn_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, path in damaged_files(tmp_path).items():
        with pytest.raises(WeightsError) as caught:
            weights.load(path)
        message = str(caught.value)
        assert name in message and "\n" not in message and len(message) < 400, message
    assert not (tmp_path / "ran").exists()


def test_a_pickle_cannot_run_code_under_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(WeightsError):
        weights.load(tmp_path / "x.safetensors")
    assert not (tmp_path / "ran").exists()


def test_import_converts_and_does_not_overwrite(tmp_path: Path) -> None:
    torch.save(make().state_dict(), tmp_path / "a.pth")
    spec = weights.import_file(tmp_path / "a.pth", tmp_path / "a.safetensors")
    again, module = weights.load(tmp_path / "a.safetensors")
    assert (spec.sha256, spec.input_range) == (again.sha256, 255.0)
    assert torch.equal(module.conv_1.weight, make().conv_1.weight)
    with pytest.raises(OutputError, match="exists already"):
        weights.import_file(tmp_path / "a.pth", tmp_path / "a.safetensors")
    weights.import_file(tmp_path / "a.pth", tmp_path / "a.safetensors", overwrite=True)


def test_save_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        weights.save(tmp_path / "absent" / "a.safetensors", make(), make().spec)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------- registry


def write_index(folder: Path, scales: tuple[int, ...]) -> Path:
    folder.mkdir()
    rows = []
    for scale in scales:
        module = make("rlfn-ntire", scale)
        digest = weights.save(folder / f"x{scale}.safetensors", module, module.spec)
        rows.append(
            f'[[weights]]\nname = "tiny"\nnetwork = "rlfn-ntire"\nscale = {scale}\n'
            f'file = "x{scale}.safetensors"\nsha256 = "{digest}"\n[weights.psnr]\nSet5 = 30.5\n'
        )
    (folder / "index.toml").write_text("".join(rows))
    return folder


def test_scale_goes_to_the_next_larger_native_file(tmp_path: Path) -> None:
    folder = write_index(tmp_path / "w", (2, 4))
    chosen = {scale: registry.find("tiny", scale, folder).scale for scale in (1, 1.5, 2, 2.1, 3, 4, 5.5, 8)}
    assert chosen == {1: 2, 1.5: 2, 2: 2, 2.1: 4, 3: 4, 4: 4, 5.5: 4, 8: 4}
    assert registry.native_scales("tiny", folder) == (2, 4)
    assert registry.find("tiny", 2, folder).psnr == {"Set5": 30.5}


def test_missing_scale_and_unknown_name_say_what_there_is(tmp_path: Path) -> None:
    folder = write_index(tmp_path / "w", (2,))
    with pytest.raises(UsageError, match=r"no weights for scale 4; there are tiny x2"):
        registry.find("tiny", 4, folder)
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        registry.find("tinny", 2, folder)
    with pytest.raises(UsageError, match="none are installed"):
        registry.find("tiny", 2, tmp_path)


def test_changed_and_missing_files_fail_verification(tmp_path: Path) -> None:
    folder = write_index(tmp_path / "w", (2,))
    spec = registry.find("tiny", 2, folder)
    registry.verify(spec)
    assert spec.path is not None
    data = bytearray(spec.path.read_bytes())
    data[-1] ^= 1
    spec.path.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        registry.verify(spec)
    spec.path.unlink()
    with pytest.raises(WeightsError, match="missing"):
        registry.verify(spec)


@pytest.mark.parametrize("text", ["[[weights]\n", '[[weights]]\nname = "x"\n', "weights = 3\n"])
def test_a_damaged_index_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.toml").write_text(text)
    with pytest.raises(WeightsError, match="index is damaged"):
        registry.models(tmp_path)


# ------------------------------------------------------------------- fetching


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder behind a local web server: (address, folder)."""
    folder = tmp_path / "served"
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/", folder
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def pinned(path: Path) -> official.OfficialFile:
    digest = registry.file_sha256(path)
    return official.OfficialFile("rlfn-ntire", 4, path.name, digest, 317_218, (("Set5", 32.1),))


def test_fetched_weights_are_kept_and_usable_by_name(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    torch.save(make().state_dict(), folder / "file.pth")
    file = pinned(folder / "file.pth")
    monkeypatch.setattr(registry, "OFFICIAL", (file,))
    seen: list[int] = []
    path = fetch.fetch(file, url, lambda done, _total: seen.append(done))
    assert seen[-1] == path.stat().st_size == (folder / "file.pth").stat().st_size
    spec, _ = weights.load("official-rlfn-ntire")
    assert (spec.input_range, spec.path, spec.psnr) == (255.0, path, {"Set5": 32.1})
    (folder / "file.pth").unlink()
    assert fetch.fetch(file, url) == path, "a good file is not fetched again"
    monkeypatch.setattr(official, "OFFICIAL", (file,))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        WeightsError, match="damaged; rlfn-pipe weights fetch official-rlfn-ntire gets it again"
    ):
        registry.verify(spec)


def test_another_content_is_not_kept(server: tuple[str, Path]) -> None:
    url, folder = server
    (folder / "file.pth").write_bytes(b"first")
    file = pinned(folder / "file.pth")
    (folder / "file.pth").write_bytes(b"other")
    with pytest.raises(WeightsError, match="SHA-256"):
        fetch.fetch(file, url)
    with pytest.raises(WeightsError, match="cannot be fetched"):
        fetch.fetch(replace(file, file="absent.pth"), url)
    assert list(cache_folder("weights").iterdir()) == []


def test_a_connection_that_breaks_is_no_change_of_the_file(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    (folder / "file.pth").write_bytes(bytes(300_000))
    file = pinned(folder / "file.pth")

    def copyfile(self: Quiet, source: Any, out: Any) -> None:
        out.write(source.read(100_000))
        self.close_connection = True

    monkeypatch.setattr(Quiet, "copyfile", copyfile)
    with pytest.raises(WeightsError, match="connection broke"):
        fetch.fetch(file, url)
    assert list(cache_folder("weights").iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfir", "connection broke"),
        (b"not HTTP at all\r\n\r\n", "cannot be fetched"),
    ],
)
def test_a_server_that_answers_rubbish_is_one_sentence(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str
) -> None:
    url, folder = server
    (folder / "file.pth").write_bytes(b"first")

    def get(self: Quiet) -> None:
        self.wfile.write(answer)
        self.close_connection = True

    monkeypatch.setattr(Quiet, "do_GET", get)
    with pytest.raises(WeightsError, match=message):
        fetch.fetch(pinned(folder / "file.pth"), url)


def test_unreachable_server_is_one_sentence() -> None:
    with pytest.raises(WeightsError, match="cannot be fetched"):
        fetch.fetch(official.OFFICIAL[0], "http://127.0.0.1:9/")


def test_choosing_official_files() -> None:
    assert [file.scale for file in official.choose("rlfn-s")] == [2, 4]
    assert len(official.choose("all")) == 5
    with pytest.raises(UsageError, match="no official weights"):
        official.choose("edsr")


# ------------------------------------------------------------------- commands


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `rlfn-pipe weights ...`."""
    code = main(["weights", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list_and_show_tell_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "list")
    assert code == 0 and re.search(r"rlfn-s +x4", out) and "Set5" in out
    listed = json.loads(command(capsys, "list", "--json")[1])
    assert {"name", "scale", "sha256", "psnr"} <= listed[0].keys()
    code, out, _ = command(capsys, "show", "rlfn-s")
    assert code == 0 and "Apache-2.0" in out and "presets/training/" in out
    assert json.loads(command(capsys, "show", "rlfn-s", "--json")[1])["scale"] == 4
    code, _, err = command(capsys, "show", "rlfn-t")
    assert code == 2 and "did you mean 'rlfn-s'" in err


def test_verify_tells_whole_from_damaged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = command(capsys, "verify")
    assert code == 0 and "rlfn-s x4: whole" in out
    bad = tmp_path / "bad.pth"
    bad.write_text("no network")
    code, out, err = command(capsys, "verify", "rlfn-s", bad)
    assert code == 1 and "rlfn-s x4: whole" in out and "bad.pth" in out and "1 of" in err
    assert command(capsys, "verify", "rlfm-s")[0] == 2
    found = json.loads(command(capsys, "verify", bad, "--json")[1])
    assert found[0]["ok"] is False


def test_import_command_writes_a_file_that_loads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save(make().state_dict(), tmp_path / "a.pth")
    code, out, _ = command(capsys, "import", tmp_path / "a.pth")
    assert code == 0 and "rlfn-ntire x4" in out
    assert weights.load(tmp_path / "a.safetensors")[0].scale == 4
    assert command(capsys, "import", tmp_path / "a.pth")[0] == 1
    assert command(capsys, "import", tmp_path / "a.pth", "-y", "--json")[0] == 0
    assert command(capsys, "import", tmp_path / "a.pth", tmp_path / "b.pth")[0] == 2
    assert command(capsys, "import", tmp_path / "absent.pth")[0] == 1


def test_fetch_command_uses_the_cache(
    capsys: pytest.CaptureFixture[str], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    torch.save(make().state_dict(), folder / "file.pth")
    monkeypatch.setattr(official, "OFFICIAL", (pinned(folder / "file.pth"),))
    code, out, _ = command(capsys, "fetch", "rlfn-ntire", "--url", url)
    assert code == 0 and str(cache_folder("weights") / "file.pth") in out
    assert json.loads(command(capsys, "fetch", "all", "--url", url, "--json")[1])[0]["scale"] == 4
    assert command(capsys, "fetch", "edsr")[0] == 2


def test_show_says_of_a_file_what_is_in_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Not what is known of the shipped weights of that name."""
    spec, module = weights.load("rlfn-s", 2)
    torch.manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.001 * torch.randn_like(parameter)
    path = tmp_path / "mine.safetensors"
    weights.save(path, module, spec)
    assert main(["weights", "show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sha256"] == registry.file_sha256(path) != spec.sha256
    assert not shown.get("psnr") and not shown.get("history")
    for scale in ("5", "0", "2.5"):
        assert main(["weights", "show", "rlfn-s", "-s", scale]) == 2
        assert "there are x2, x3, x4" in capsys.readouterr().err
    assert main(["weights", "show", "rlfn-s", "-s", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == spec.sha256


def test_a_file_that_is_no_weights_by_its_name_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert main(["weights", "show", "picture.png"]) == 2
    assert "no weights file by its name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shapes_are_those_of_the_network(name: str, scale: int) -> None:
    spec = architecture(name, scale)
    state = RLFN(spec).state_dict()
    assert shapes(spec) == {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    """numpy has no bfloat16, which PyTorch reads then."""
    spec = architecture("rlfn-ntire", 2)
    state = {key: value.to(dtype) for key, value in RLFN(spec).state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", {"input_range": "1.0"})
    found, arrays = weights.load_weights(tmp_path / "w.safetensors")
    assert (found.scale, found.channels, found.blocks) == (2, 46, 4)
    for key, value in state.items():
        assert arrays[key].dtype == np.float32
        assert np.array_equal(arrays[key], value.float().numpy())


def test_what_float32_cannot_hold_is_one_sentence(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    spec = architecture("rlfn-ntire", 2)
    state = {key: value.double() * 1e60 for key, value in RLFN(spec).state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="not finite"):
        weights.load_weights(tmp_path / "w.safetensors")
    assert not recwarn.list


def test_a_user_without_a_home_has_the_shipped_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run with a number for a user."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RLFN_PIPE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert registry.find("rlfn-s", 4).scale == 4
    with pytest.raises(OSError):
        (cache_folder("weights") / "file").parent.mkdir(parents=True)
