"""Start-up: what the command imports, and what it must not, measured in modules rather than seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from rlfn_pipe.cli.app import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    print("code", code, "loaded", *(name for name in ("torch",) if name in sys.modules))
"""


def test_the_command_leaves_torch_to_its_worker(tmp_path: Path) -> None:
    """Importing it takes most of a second and hundreds of megabytes, so once has to do."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    output = tmp_path / "out.mkv"
    clip = ROOT / "tests" / "data" / "bunny.mp4"
    command = [sys.executable, str(tmp_path / "program.py"), "upscale", str(clip), str(output)]
    done = subprocess.run(
        [*command, "-q", "--frames", "1", "--scale", "2", "--threads", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert output.exists()
    words = done.stdout.split()
    assert words[:2] == ["code", "0"] and "torch" not in words
