"""Refuses what leaves this machine, in this Python process and in those that it starts.

An audit hook sees every connection, datagram and look-up that Python's `socket` makes, in any
thread, and cannot be taken away again. Each try is also written down, since a caller may swallow
the error. Not seen: sockets that compiled code opens for itself (gRPC, uvloop's own client side),
and a Python started with -I, -E or -S. Standard library only: every process of the suite imports
this. Start at `install`.
"""

import ipaddress
import json
import os
import socket
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

RECORD = "ONLY_LOOPBACK_RECORD"  # environment: the file that tries are written to
FOLDER = str(Path(__file__).resolve().parent)
FRAMES = 12  # of the stack that is written down

LOCAL_FAMILIES = {socket.AF_UNIX, getattr(socket, "AF_NETLINK", None)}
# Position of what is to be looked at among an event's arguments.
LOOK_UPS = {
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class OutsideAddress(RuntimeError):  # noqa: N818 - named after what was tried
    """Something asked for an address that is not loopback.

    No OSError: libraries take those for a network that may come back, and try again for minutes.
    """


def install() -> None:
    """Watch this process from now on, and the Python processes that it starts."""
    sys.addaudithook(_look)


def is_loopback(host: Any) -> bool:
    """Whether this is localhost or an address of loopback; other names are not looked up."""
    if isinstance(host, bytes | bytearray):
        host = host.decode("ascii", "replace")
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if event in SENDS:
        connection, address = arguments[:2]
        if connection.family in LOCAL_FAMILIES or address is None:
            return
        if not is_loopback(address[0]):
            _refuse(event, address)
    elif event in LOOK_UPS:
        host = arguments[LOOK_UPS[event]]
        if isinstance(host, tuple):
            host = host[0]
        # Without a host, or with all of this machine's addresses, somebody is going to listen.
        if host not in (None, "", b"", "0.0.0.0", "::") and not is_loopback(host):
            _refuse(event, host)
    elif event == "subprocess.Popen":
        _guard(arguments[3])


def _guard(environment: Any) -> None:
    """Have a new process guarded too, also one that gets an environment of its own."""
    place = os.environ if environment is None else environment
    if not isinstance(place, MutableMapping) or any(isinstance(name, bytes) for name in place):
        raise TypeError("a process started by a test needs an environment of strings, in a dict.")
    if RECORD in os.environ:
        place.setdefault(RECORD, os.environ[RECORD])
    folders = [folder for folder in place.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if FOLDER not in folders:
        place["PYTHONPATH"] = os.pathsep.join([FOLDER, *folders])


def _refuse(event: str, address: Any) -> None:
    said = (
        f"{event} of {address!r}: tests reach loopback only. Give the code under test the address "
        "of a fake, or a file."
    )
    if record := os.environ.get(RECORD):
        stack = "".join(traceback.format_stack(sys._getframe(2), limit=FRAMES))
        tried = {"said": said, "process": [os.getpid(), *sys.orig_argv], "stack": stack}
        line = json.dumps(tried).encode() + b"\n"
        file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, line)
        os.close(file)
    raise OutsideAddress(said)
