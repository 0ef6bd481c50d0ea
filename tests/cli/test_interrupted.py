"""Ctrl-C, however early."""

from __future__ import annotations

import subprocess
import sys


def test_ctrl_c_while_the_command_is_imported_is_no_traceback() -> None:
    """One line and exit code 130, as later."""
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'wvmonitor.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from wvmonitor.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "wvmonitor: interrupted\n")
