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


def test_a_command_leaves_the_process_as_it_found_it() -> None:
    """`wvmonitor trl` trains in this process: its environment and garbage collection are usual."""
    code = (
        "import gc, os, sys\n"
        "before, usual = dict(os.environ), gc.get_threshold()\n"
        "from wvmonitor.__main__ import main\n"
        "sys.argv = ['wvmonitor', '--version']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "gc.collect()\n"
        "assert dict(os.environ) == before, set(os.environ) ^ set(before)\n"
        "assert gc.get_threshold() == usual\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
