"""What a root program tries to get past its pod's tunnel; run inside, prints what worked as JSON.

python3 escapes.py NODE TCP_PORT UDP_PORT OTHER_POD GROUP
"""

import contextlib
import ctypes
import json
import os
import socket
import struct
import sys

NODE, OTHER = sys.argv[1], sys.argv[4]
TCP, UDP, GROUP = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[5])
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NETLINK_NETFILTER = 12


def tcp(address: str, port: int, device: str = "", mark: int = 0) -> bool:
    with socket.socket() as stream:
        stream.settimeout(3)
        if device:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if mark:
            stream.setsockopt(socket.SOL_SOCKET, 36, mark)  # SO_MARK
        stream.connect((address, port))
        return True


def udp(address: str, port: int) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(1)
        for _ in range(4):  # any datagram may be lost
            datagrams.sendto(b"?", (address, port))
            with contextlib.suppress(TimeoutError):
                return datagrams.recv(10) == b"!"
        raise TimeoutError("timed out")


def raw() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as packets:
        packets.sendto(struct.pack("!HHHH", 9, UDP, 9, 0) + b"?", (NODE, 0))
        return True


def packet() -> bool:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300):
        return True


def check(answer: bytes) -> None:
    """Raise what a netlink answer says (netlink(7))."""
    if error := struct.unpack_from("=i", answer, 16)[0]:
        raise OSError(-error, os.strerror(-error))


def unlock() -> bool:
    """Delete the table, as nft would: NFT_MSG_DELTABLE in a batch of its own."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        name = b"lattice-pod\0"
        attribute = struct.pack("=HH", 4 + len(name), 1) + name
        attribute += b"\0" * (-len(attribute) % 4)
        body = struct.pack("!BBH", 1, 0, 0) + attribute  # NFPROTO_INET
        edge = struct.pack("!BBH", 0, 0, 10)
        messages = b""
        for kind, flags, content in ((16, 1, edge), (0xA02, 5, body), (17, 1, edge)):
            messages += struct.pack("=IHHII", 16 + len(content), kind, flags, 1, 0) + content
        netlink.settimeout(2)
        netlink.send(messages)
        check(netlink.recv(4096))
    return tcp(NODE, TCP)


def route() -> bool:
    """Take the tunnel's interface away: RTM_DELLINK."""
    index = socket.if_nametoindex("lattice0")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0)
        netlink.send(struct.pack("=IHHII", 16 + len(body), 17, 5, 1, 0) + body)
        check(netlink.recv(4096))
    return True


def group() -> bool:
    os.setegid(GROUP)
    return tcp(NODE, TCP)


def user_namespace() -> bool:
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    return unlock() or tcp(NODE, TCP)


def in_child(attempt):
    """What it leaves behind is not the next one's help."""
    receive, send = os.pipe()
    if os.fork() == 0:
        try:
            told = str(attempt() or "no")
        except BaseException as error:
            told = getattr(error, "strerror", None) or type(error).__name__
        os.write(send, told.encode())
        os._exit(0)
    os.wait()
    return os.read(receive, 1000).decode()


ATTEMPTS = {
    "TCP to the node": lambda: tcp(NODE, TCP),
    "TCP to another pod": lambda: tcp(OTHER, 18421),
    "UDP to the node": lambda: udp(NODE, UDP),
    "TCP bound to eth0": lambda: tcp(NODE, TCP, device="eth0"),
    "TCP with a mark": lambda: tcp(NODE, TCP, mark=1),
    "raw socket": raw,
    "packet socket": packet,
    "the rules": unlock,
    "the interface": route,
    "the group": group,
    "user namespace": user_namespace,
}
print(json.dumps({name: in_child(attempt) for name, attempt in ATTEMPTS.items()}))
