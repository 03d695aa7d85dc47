"""What the agent tells the launcher: a file of pairs, each name and value closed by a zero byte.

It is in a directory of the agent (0700, the file 0600) that no sandbox sees. A path may hold any
character but zero, and the launcher has no time to load a parser.
"""

import os

VERSION = "1"
HOME = "/run/lattice"  # inside, of these:
HOSTS, RESOLV, IDENTITY = "hosts", "resolv.conf", "identity.json"
INSIDE = "LATTICE_SANDBOX"  # names the file with the identity to a program inside
HERE = "-"  # in the place of a path: run the program where the launcher is
NAMESPACE, PROXY, PLAIN, PROBE = "namespace", "proxy", "plain", "probe"


class Spec:
    """How programs of one agent are run.

    Attributes:
        kind: ``namespace``; ``proxy`` and ``plain``, which run the program as it is, with the
            variables that are set here; ``probe``, in namespaces that the launcher makes.
        user: the user namespace, as path.
        net: the network namespace, as path.
        cookie: of the network namespace, never given twice, other than the process id in its path;
            0 where the kernel has none.
        keeper: process that ends with the engine.
        lifeline: a FIFO that the agent holds open for as long as its programs may run.
        view: directory with ``hosts``, ``resolv.conf`` and ``identity.json`` of the sandbox.
        masked: files and directories that hold secrets, and are empty inside.
        variables: what is set in the environment.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.user = self.net = self.lifeline = self.view = ""
        self.cookie = self.keeper = 0
        self.masked: list[str] = []
        self.variables: dict[str, str] = {}

    def __bytes__(self) -> bytes:
        """The file's content."""
        pairs = [("version", VERSION), ("kind", self.kind), ("user", self.user)]
        pairs += [("net", self.net), ("lifeline", self.lifeline), ("view", self.view)]
        pairs += [("cookie", str(self.cookie)), ("keeper", str(self.keeper))]
        pairs += [("mask", each) for each in self.masked]
        pairs += [("set", f"{name}={value}") for name, value in self.variables.items()]
        return b"".join(os.fsencode(text) + b"\0" for pair in pairs for text in pair)

    def write(self, path: str) -> None:
        """Make the file; what was there is replaced as a whole."""
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(self))
        os.replace(f"{path}.new", path)


def read(path: str) -> Spec:
    """Read what :meth:`Spec.write` wrote; ``HERE`` for a program of one in a sandbox.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    if path == HERE:
        return Spec(PLAIN)
    with open(path, "rb", buffering=0) as file:
        words = [os.fsdecode(word) for word in file.read().split(b"\0")]
    pairs = list(zip(words[:-1:2], words[1:-1:2], strict=True))
    if pairs[:1] != [("version", VERSION)]:
        raise ValueError("it is of another version of lattice-sdk")
    spec = Spec("")
    for name, value in pairs[1:]:
        if name == "mask":
            spec.masked.append(value)
        elif name == "set":
            variable, _, text = value.partition("=")
            spec.variables[variable] = text
        elif name in ("cookie", "keeper"):
            setattr(spec, name, int(value))
        elif name in ("kind", "user", "net", "lifeline", "view"):
            setattr(spec, name, value)
        else:
            raise ValueError(f"{name!r} is unknown")
    return spec
