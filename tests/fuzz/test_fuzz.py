"""A short run of the changes of files, in a process of its own with limited memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit memory")
def test_changed_files_are_refused_in_a_sentence_or_read_as_they_were() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--mutations", "300"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) changed files, 0 failures", done.stdout)
    assert found is not None and int(found[1]) >= 300, done.stdout
