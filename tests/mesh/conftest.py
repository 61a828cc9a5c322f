"""Tests for a process with eight devices; `tests/parallel/test_on_eight_devices.py` starts one for each file here."""

import os

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"

# Any other process has the one CPU device it has, and leaves these files out.
collect_ignore_glob = [] if EIGHT_DEVICES in os.environ.get("XLA_FLAGS", "") else ["test_*.py"]
