"""Where the agent's own lines go."""

from __future__ import annotations

import os
import sys

from syncagent.support import stderr


def test_a_stream_that_names_no_encoding_gets_utf_8(monkeypatch, tmp_path):
    """As those of programs that copy their output have none."""
    file = os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT)

    class Tee:
        encoding = None

        def write(self, text):
            os.write(file, text.encode())

        def flush(self):
            pass

        def fileno(self):
            return file

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "__stderr__", Tee())
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    stderr.write("350 µs\n")
    os.close(file)
    assert (tmp_path / "err").read_text(encoding="utf-8") == "350 µs\n"
