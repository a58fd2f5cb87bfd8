"""A second network between the nodes of the lab that holds every packet back: what netem does, for kernels without it.

    delay.py MILLISECONDS PID:ADDRESS...

In the network namespace of each process PID it makes an interface `delay0` with ADDRESS, and carries packets from one to the
other until it is ended. One way takes so many milliseconds, a round trip twice as long.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from ipaddress import IPv4Address
from pathlib import Path

NAME = "delay0"
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LARGEST = 60_000
"""Bytes of a packet: few and large ones, since each costs a turn of this loop."""

_libc = ctypes.CDLL(None, use_errno=True)


def enter(pid: int) -> None:
    """Go into the network namespace of a process."""
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_interface(pid: int, address: IPv4Address) -> int:
    """Make the interface there; what its node sends is read from the file, what is written to it arrives."""
    enter(pid)
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", NAME.encode(), IFF_TUN | IFF_NO_PI))
    for command in (f"addr add {address}/24 dev {NAME}", f"link set {NAME} mtu {LARGEST} up"):
        subprocess.run(["ip", *command.split()], check=True)
    return file


def carry(files: dict[bytes, int], seconds: float) -> None:
    """Deliver each packet to the address in its header, when its time has come; all wait equally long, so in their order."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for file in select.select(list(files.values()), [], [], patience)[0]:
            packet = os.read(file, LARGEST + 100)
            target = files.get(packet[16:20])
            if target is not None:
                waiting.append((time.monotonic() + seconds, target, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, packet = waiting.popleft()
            os.write(target, packet)


def main() -> None:
    """Carry packets until ended."""
    nodes = [argument.split(":") for argument in sys.argv[2:]]
    files = {IPv4Address(address).packed: open_interface(int(pid), IPv4Address(address)) for pid, address in nodes}
    print("ready", flush=True)
    carry(files, float(sys.argv[1]) / 1000)


if __name__ == "__main__":
    main()
