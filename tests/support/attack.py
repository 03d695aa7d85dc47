"""Attempts to get out, each made for real: ``python attack.py NAME JSON`` → a JSON line.

Needs nothing but the standard library, so that it runs anywhere. ``{"reached": true}`` means that
the attempt got what it wanted; ``why`` is what stood in its way, or what it got.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import mmap
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 6.0  # seconds for an answer
AGAIN = 2.0  # seconds until a datagram is sent again: any may be lost
_libc = ctypes.CDLL(None, use_errno=True)
ATTACKS: dict[str, Callable[..., Any]] = {}

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000  # linux/sched.h
AF_VSOCK, AF_ALG, AF_RXRPC, AF_TIPC, AF_BLUETOOTH = 40, 38, 33, 30, 31  # linux/socket.h
IP_FREEBIND = 15  # linux/in.h
MS_BIND, MNT_DETACH = 4096, 2  # linux/mount.h
PTRACE_ATTACH = 16  # linux/ptrace.h
SYSCALLS = {  # asm/unistd_64.h, asm-generic/unistd.h
    "x86_64": {"io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438, "memfd": 319},
    "aarch64": {"io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438, "memfd": 279},
}[platform.machine()]


class HeldError(Exception):
    """Something stood in the way."""


def attack(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register an attempt: it returns what it got, or raises."""
    ATTACKS[function.__name__] = function
    return function


def libc(name: str, *arguments: Any) -> int:
    """Call a function of the C library.

    Raises:
        OSError: it returned -1.
    """
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


# Over the network.


@attack
def tcp(host: str, port: int, send: str = "hello\n", until: str = "") -> str:
    """Connect, say something, get an answer, up to and with a certain word."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE)
        stream.connect((host, port))
        stream.sendall(send.encode())
        answer = data = stream.recv(4096)
        while data and until.encode() not in answer:
            answer += (data := stream.recv(4096))
    if not answer:
        raise HeldError("closed without an answer")
    return answer.decode(errors="replace")


@attack
def udp(host: str, port: int, broadcast: bool = False) -> str:
    """A datagram and its answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        if broadcast:
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            return _ask(datagrams, lambda: datagrams.sendto(b"hello", (host, port))).decode()
        # Only who is connected learns of refusals (udp(7)).
        datagrams.connect((host, port))
        return _ask(datagrams, lambda: datagrams.send(b"hello")).decode()


def _ask(
    datagrams: socket.socket,
    send: Callable[[], Any],
    wanted: Callable[[bytes, Any], bool] = lambda data, sender: True,
) -> bytes:
    """Send again and again until an answer that is wanted has come.

    Raises:
        OSError: none came in time, or a refusal.
    """
    end = time.monotonic() + PATIENCE
    while True:
        send()
        again = min(end, time.monotonic() + AGAIN)
        while (left := again - time.monotonic()) > 0:
            datagrams.settimeout(left)
            try:
                data, sender = datagrams.recvfrom(4096)
            except TimeoutError:
                continue
            if wanted(data, sender):
                return data
        if again == end:
            raise TimeoutError("timed out")


@attack
def multicast(group: str, port: int, interface: str) -> str:
    """A datagram to a group, by the interface of the given address where there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with contextlib.suppress(OSError):
            datagrams.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface)
            )
        return _ask(datagrams, lambda: datagrams.sendto(b"hello", (group, port))).decode()


@attack
def resolve(name: str, server: str, port: int, protocol: str) -> str:
    """Ask a name server by hand."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + b"\0\1\0\1"
    if protocol == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect((server, port))
            answer = _ask(datagrams, lambda: datagrams.send(query))
    else:
        with socket.create_connection((server, port), PATIENCE) as stream:
            stream.sendall(struct.pack(">H", len(query)) + query)
            answer = stream.recv(512)
    if not answer:
        raise HeldError("closed without an answer")
    return answer.hex()


@attack
def lookup(name: str) -> str:
    """Have the C library find a name, by whatever ways it has."""
    return str(socket.getaddrinfo(name, 443)[0][4][0])


@attack
def ping(host: str, raw: bool) -> str:
    """An ICMP echo, by a raw socket or by one for pings."""
    kind = socket.SOCK_RAW if raw else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as echo:
        _ask(
            echo,
            lambda: echo.sendto(_echo(), (host, 0)),
            lambda answer, sender: sender[0] == host and answer[20 if raw else 0] == 0,
        )
    return "echo reply"


def _echo() -> bytes:
    body = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + b"lattice!"
    total = sum(struct.unpack(">8H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]


@attack
def raw_tcp(host: str, port: int) -> str:
    """A TCP segment made by hand, the kernel's own TCP left out."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(struct.pack(">HHIIBBHHH", 40001, port, 1, 0, 0x50, 2, 1024, 0, 0), (host, 0))
    return "sent"


@attack
def packet_socket() -> str:
    """A socket that sees and sends whole frames."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300):
        return "open"


@attack
def spoof(source: str, host: str, port: int, text: str) -> str:
    """A datagram from an address of somebody else; who gets it tells whether it came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        datagrams.bind((source, 0))
        datagrams.sendto(text.encode(), (host, port))
    return "sent"


@attack
def family(number: int, kinds: list[int], protocol: int = 0) -> str:
    """A socket of a family that network namespaces do not hold, or hold badly."""
    failures = []
    for kind in kinds:
        try:
            socket.socket(number, kind, protocol).close()
        except OSError as error:
            failures.append(str(error))
        else:
            return "open"
    raise HeldError("; ".join(failures))


# Over sockets of this machine.


@attack
def unix(path: str, kind: str = "stream") -> str:
    """A socket of a service of the host; an abstract one begins with ``@``."""
    address = "\0" + path[1:] if path.startswith("@") else path
    if kind == "dgram":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(address)
            datagrams.send(b"hello")
        return "sent"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(address)
        stream.sendall(b"hello\n")
        answer = stream.recv(4096)
    if not answer:
        raise HeldError("closed without an answer")
    return answer.decode(errors="replace")


@attack
def unix_by_pair(path: str) -> str:
    """A socket of the host by one end of a pair, where making a socket is forbidden."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"hello", path)
    return "sent"


@attack
def descriptor(number: int) -> str:
    """Use a descriptor that somebody forgot to close."""
    with socket.socket(fileno=number) as stream:
        stream.settimeout(PATIENCE)
        stream.sendall(b"hello\n")
        return stream.recv(4096).decode(errors="replace")


@attack
def every_descriptor() -> str:
    """Any descriptor beyond the standard three."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) > 2 and not target.startswith(f"/proc/{os.getpid()}"):
                found[name] = target
    if not found:
        raise HeldError("none is open")
    return json.dumps(found)


# Processes outside.


@attack
def see(pid: int) -> str:
    """Look at a process of the host."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


@attack
def environment(pid: int, marker: str) -> str:
    """Find a secret in the environment of any process that can be seen."""
    for path in [Path(f"/proc/{pid}/environ"), *Path("/proc").glob("[0-9]*/environ")]:
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                return str(path)
    raise HeldError("it is in no environment")


@attack
def root_of(pid: int) -> str:
    """Go through a process's root directory."""
    return ",".join(sorted(os.listdir(f"/proc/{pid}/root/"))[:3])


@attack
def kill(pid: int) -> str:
    """Send a signal."""
    os.kill(pid, 0)
    return "may be killed"


@attack
def ptrace(pid: int) -> str:
    """Take a process over."""
    _libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc("ptrace", PTRACE_ATTACH, pid, 0, 0)
    os.waitpid(pid, 0)
    libc("ptrace", 17, pid, 0, 0)
    return "attached"


@attack
def steal_descriptor(pid: int, number: int) -> str:
    """Take an open descriptor out of a process."""
    handle = libc("syscall", SYSCALLS["pidfd_open"], pid, 0)
    stolen = libc("syscall", SYSCALLS["pidfd_getfd"], handle, number, 0)
    return os.readlink(f"/proc/self/fd/{stolen}")


@attack
def outlive(file: str) -> str:
    """A daemon that ignores every signal and works on when the command has ended."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            for count in range(6000):  # a minute at most
                Path(file).write_text(f"{count}")
                time.sleep(0.01)
        os._exit(0)
    os.wait()
    deadline = time.monotonic() + PATIENCE
    while not Path(file).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return "started"


@attack
def fork_bomb(file: str, number: int) -> str:
    """Many processes that each hide from their parents."""
    for _ in range(number):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                null = os.open(os.devnull, os.O_RDWR)
                for standard in range(3):  # nobody waits for its end by them
                    os.dup2(null, standard)
                for count in range(600):
                    Path(file).write_text(f"{count}")
                    time.sleep(0.1)
            os._exit(0)
        os.wait()
    return "started"


# Namespaces, mounts, the network's configuration.


@attack
def own_user_namespace() -> str:
    """A user namespace, in which one has every capability."""
    libc("unshare", CLONE_NEWUSER)
    return "made"


@attack
def own_network_namespace() -> str:
    """Another network namespace."""
    libc("unshare", CLONE_NEWNET)
    return "made"


@attack
def enter_namespaces(pid: int) -> str:
    """The network namespace of another process, of every one that can be seen."""
    mine = os.stat("/proc/self/ns/net").st_ino
    failures = []
    for path in [Path(f"/proc/{pid}/ns/net"), *Path("/proc").glob("[0-9]*/ns/net")]:
        try:
            if os.stat(path).st_ino == mine:
                continue
            handle = os.open(path, os.O_RDONLY)
            libc("setns", handle, CLONE_NEWNET)
        except OSError as error:
            failures.append(f"{path}: {error}")
            continue
        return f"entered {path}"
    raise HeldError("; ".join(failures[:5]) or "there is no other namespace")


@attack
def mount(target: str) -> str:
    """Mount something over a directory or a file."""
    if os.path.isdir(target):
        libc("mount", b"tmpfs", target.encode(), b"tmpfs", 0, None)
    else:
        libc("mount", b"/dev/null", target.encode(), None, MS_BIND, None)
    return "mounted"


@attack
def unmount(target: str, mounted: bool = True) -> str:
    """Take away what was mounted over something, once something is."""
    if not mounted:
        mount(target)
    libc("umount2", target.encode(), MNT_DETACH)
    return "unmounted"


@attack
def configure(what: str) -> str:
    """Add an address, a route, a rule, an interface, by netlink."""
    lo = socket.if_nametoindex("lo")
    request, body = {
        # rtnetlink(7): RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE, RTM_NEWLINK, RTM_DELROUTE
        "address": (20, struct.pack("BBBBI", 2, 32, 0, 0, lo) + _attribute(2, b"\x0a\x63\1\1")),
        "route": (
            24,
            struct.pack("BBBBBBBBI", 2, 32, 0, 0, 254, 4, 253, 1, 0)
            + _attribute(1, b"\x0a\x63\1\2")
            + _attribute(4, struct.pack("I", lo)),
        ),
        "rule": (32, struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)),
        "interface": (
            16,
            struct.pack("BBHiII", 0, 0, 0, 0, 0, 0)
            + _attribute(3, b"escape0\0")
            + _attribute(18, _attribute(1, b"veth\0")),
        ),
    }[what]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(PATIENCE)
        flags = 0x1 | 0x4 | 0x400 | 0x200  # request, acknowledge, create, exclusively
        netlink.send(struct.pack("IHHII", 16 + len(body), request, flags, 1, 0) + body)
        number = -struct.unpack("i", netlink.recv(4096)[16:20])[0]
    if number not in (0, errno.EEXIST):
        raise OSError(number, os.strerror(number))
    return "added"


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


@attack
def sysctl(path: str) -> str:
    """Write a setting of the kernel: the value that it has, so that nothing changes."""
    value = Path(path).read_bytes()
    Path(path).write_bytes(value)
    return "written"


@attack
def write_file(path: str) -> str:
    """Open a file of the kernel or of a device for writing; nothing is written."""
    os.close(os.open(path, os.O_WRONLY))
    return "open"


# Privileges.


@attack
def capabilities() -> str:
    """Any capability, now or by a program that is executed."""
    status = _status(os.getpid())
    held = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    if status["NoNewPrivs"] != "1":
        held["new privileges by execve"] = 1
    if not any(held.values()):
        raise HeldError("none")
    return json.dumps(held)


@attack
def setuid(program: str) -> str:
    """Become somebody else by a program that is setuid."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            deadline = time.monotonic() + PATIENCE
            # What it executes may be nobody's business; its name is everybody's.
            while _status(child.pid)["Name"] != os.path.basename(program)[:15]:
                if time.monotonic() > deadline:
                    raise HeldError("it is not executed")
                time.sleep(0.001)
            effective = _status(child.pid)["Uid"].split()[1]
        finally:
            child.kill()
    if int(effective) == os.getuid():
        raise HeldError(f"it runs as {effective}, as its caller")
    return f"runs as {effective}"


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@attack
def io_uring() -> str:
    """System calls by a ring, which no filter sees."""
    parameters = ctypes.create_string_buffer(120)
    libc("syscall", SYSCALLS["io_uring_setup"], 4, parameters)
    return "made"


@attack
def foreign_system_call() -> str:
    """A Unix socket by the system calls of 32-bit programs, which a careless filter forgets."""
    if platform.machine() != "x86_64":
        raise HeldError("only x86 has them in 64-bit programs")
    # mov eax, 359 (socket); mov ebx, 1; mov ecx, 1; xor edx, edx; int 0x80; with rbx kept
    code = b"\x53\xb8\x67\x01\0\0\xbb\1\0\0\0\xb9\1\0\0\0\x31\xd2\xcd\x80\x5b\xc3"
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return "open"


@attack
def push_input(text: str) -> str:
    """Type into the caller's terminal."""
    import fcntl
    import termios

    for character in text:
        fcntl.ioctl(0, termios.TIOCSTI, character.encode())
    return "typed"


# Secrets.


@attack
def find_secrets(secrets: list[str], directories: list[str]) -> str:
    """Look for secrets in everything that can be read and is likely to hold them.

    They come backwards, or the search would find its own arguments.
    """
    wanted = [secret[::-1].encode() for secret in secrets]
    places = [Path("/proc/self/environ"), *Path("/proc").glob("[0-9]*/environ")]
    places += Path("/proc").glob("[0-9]*/cmdline")
    for directory in directories:
        places += [path for path in Path(directory).rglob("*") if path.is_file()]
    read = 0
    for place in places:
        with contextlib.suppress(OSError), place.open("rb") as file:
            data = file.read(1 << 20)
            read += 1
            for secret in wanted:
                if secret in data:
                    return f"in {place}"
    raise HeldError(f"in none of {read} files")


@attack
def read(path: str) -> str:
    """Read a file."""
    return Path(path).read_text()


@attack
def receive_descriptor(path: str) -> str:
    """Have a service of the host hand a descriptor over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(path)
        stream.sendall(b'{"family": "inet", "type": "stream"}\n')
        _, ancillary, _, _ = stream.recvmsg(4096, socket.CMSG_LEN(4))
    numbers = array.array("i")
    for _, _, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    if not numbers:
        raise HeldError("none came")
    return f"descriptor {numbers[0]}"


def main() -> None:
    """Make one attempt and tell."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    started = time.monotonic()
    try:
        told = {"reached": True, "why": ATTACKS[name](**arguments)}
    except (OSError, HeldError) as error:
        told = {"reached": False, "why": str(error), "errno": getattr(error, "errno", None)}
    print(json.dumps({**told, "seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    main()
