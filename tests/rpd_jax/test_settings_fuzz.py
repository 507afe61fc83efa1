"""Whatever stands in a field or on the command line ends in a resolved config or in one sentence."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "settings_fuzz.py"


def test_random_settings_end_in_a_config_or_a_sentence():
    """In a process of its own: the flags are those of train.py."""
    command = [sys.executable, SCRIPT, "250"]
    outcome = subprocess.run(command, cwd=SCRIPT.parents[2], capture_output=True, text=True, timeout=500)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr[-5000:]
    config, command_line = outcome.stdout.splitlines()
    assert "'resolved'" in config and "'must'" in config and "'is not'" in command_line
