"""What the lab promises about the networks between its nodes."""

import sys

import pytest

from tests.cluster.slurm_lab import SlurmLab

pytestmark = pytest.mark.cluster

# Nobody listens there: the refusal comes back after a round trip.
KNOCK = """
import socket, time
started = time.monotonic()
assert socket.socket().connect_ex(("10.77.128.12", 9)) == 111
print(time.monotonic() - started)
"""


def test_the_second_network_takes_its_time(lab: SlurmLab):
    lab.call("delay", "25")
    try:
        assert float(lab.on("node1", sys.executable, "-c", KNOCK)) >= 2 * 0.025
    finally:
        lab.call("delay", "off")
    assert "delay0" not in lab.on("node1", "ip", "-brief", "link")
