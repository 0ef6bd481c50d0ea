"""Files that appear whole or not at all, and what is no file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wvmonitor.errors import InputError
from wvmonitor.files.atomic import check_writable, replacing, write_all


def write(path: Path, text: str) -> None:
    check_writable(path)
    with replacing(path) as descriptor:
        write_all(descriptor, text.encode())


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    """Whoever waits at the other end of a FIFO gets the bytes; nothing takes its place."""
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "all of it")
    reader.join(10)
    assert read == ["all of it"]
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not os.access("/dev/null", os.W_OK), reason="no /dev/null to write to")
def test_a_device_is_not_replaced() -> None:
    """`--out /dev/null`, as root in a container, leaves /dev/null to everybody else."""
    before = os.stat("/dev/null")  # noqa: PTH116
    write(Path("/dev/null"), "nothing")
    assert os.stat("/dev/null").st_rdev == before.st_rdev  # noqa: PTH116


@pytest.mark.parametrize("redirected", [False, True])
def test_dev_stdout_is_the_program_s_own_output(redirected: bool, tmp_path: Path) -> None:
    """`-o /dev/stdout` writes to standard output, a pipe or a file; the link stays a link."""
    code = (
        "from tests.files.test_atomic import write; from pathlib import Path; "
        "write(Path('/dev/stdout'), 'report\\n')"
    )
    at_end, root = tmp_path / "out", Path(__file__).parents[2]
    with at_end.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            stdout=file if redirected else subprocess.PIPE,
            check=True,
            timeout=60,
        )
    assert (at_end.read_text() if redirected else done.stdout.decode()) == "report\n"
    assert Path("/dev/stdout").is_symlink()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder in place of a file is said before the work, in one sentence."""
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="is a folder"), replacing(tmp_path):
        pass


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """What a link points to is left as it is."""
    (tmp_path / "real").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "ours")
    assert (tmp_path / "real").read_text() == "theirs"
    assert (tmp_path / "link").read_text() == "ours"
