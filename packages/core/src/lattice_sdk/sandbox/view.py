"""What a sandbox sees of the machine's files: all of them, but for what leads around its network.

Runs in the sandbox's first process, which still has all capabilities in the agent's own user
namespace. Nothing here touches the machine's mounts.
"""

import errno
import os
import time

from lattice_sdk.sandbox import kernel
from lattice_sdk.sandbox.spec import HOSTS, RESOLV, Spec
from lattice_sdk.sandbox.trouble import Step, Trouble, cause, masked_proc, mounts

_STRICT = kernel.ATTR_READ_ONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV | kernel.ATTR_NOEXEC
_QUIET = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
# uid 0 owns these files, and needs no capability to write them: what a crash starts outside, say.
_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
_HIDDEN: tuple[str, ...] = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/key-users")
_HIDDEN += ("/proc/latency_stats", "/proc/scsi", "/proc/sched_debug", "/proc/timer_list")
# File systems that are the kernel's own. Where the machine has another of them, a chroot's, it is
# as telling, and for uid 0 as dangerous, as the one in its usual place.
_KERNELS: tuple[str, ...] = ("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "bpf")
_KERNELS += ("configfs", "securityfs", "selinuxfs", "efivarfs", "pstore", "binfmt_misc")
_KERNELS += ("devtmpfs", "fusectl")
_DEVICES: tuple[str, ...] = ("null", "zero", "full", "random", "urandom", "tty", "shm")
_DEVICES += ("dri", "kfd", "dxg")  # and nvidia*: a graphics processor is no network
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "ptmx": "pts/ptmx"}
_LINKS |= {"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
# What to hide may be going, as an engine's directory goes with its agent. The kernel takes away
# what is mounted on it first, and then itself (vfs_rmdir): between the two it is there, and can be
# neither mounted on (ENOENT) nor be found to be a mount (EINVAL). Or it comes again, as
# another kind of file than it was (ENOTDIR).
_GOING = (errno.ENOENT, errno.EINVAL, errno.ENOTDIR)
_LOOKS, _BETWEEN_LOOKS = 20, 0.005  # seconds


class View:
    """Makes the mounts of one sandbox.

    Attributes:
        covered: the directories of which the machine's own can no longer be seen.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._run = _directory("/run")
        # Looked at before anything is covered.
        self._hosts = os.path.realpath("/etc/hosts")
        self._resolv = os.path.realpath("/etc/resolv.conf")
        self._second_run = os.path.realpath("/var/run")
        self._others = [
            target
            for _, target, kind, _ in mounts()
            if kind in _KERNELS and not _below(target, ("/proc", "/sys", "/dev", self._run))
        ]
        self.covered = [self._run, "/proc", "/sys"]

    def make(self) -> None:
        """Make them all.

        Raises:
            Trouble: this machine does not let it.
        """
        with Step("a mount namespace of its own", limit="max_mnt_namespaces"):
            kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
            # What is mounted outside later still comes in; nothing goes out.
            kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
        self._make_run()
        self._make_proc()
        self._make_sys()
        if os.getuid() == 0:
            self._make_dev()
        with Step("hiding the agent's secrets"):
            for path in (*self._spec.masked, *self._others):
                self._hide(path)
            os.rmdir(f"{self._run}/.nothing")
            os.unlink(f"{self._run}/.empty")

    def _make_run(self) -> None:
        run, uid = self._run, os.getuid()
        hint = "They are below TMPDIR, in the engine's directory, and must be there to be read"
        with Step("the sandbox's files", hint=hint):
            view = os.open(self._spec.view, os.O_PATH | os.O_CLOEXEC)  # it may be in /run itself
        links = {
            entry.name: os.readlink(entry.path)
            for entry in os.scandir(run)
            if entry.is_symlink() and entry.name != "lattice"
        }
        with Step(f"a {run} of its own"):
            kernel.mount("tmpfs", run, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
            for name, target in links.items():
                os.symlink(target, f"{run}/{name}")
            for name, mode in ((f"user/{uid}", 0o700), ("lock", 0o1777), ("lattice", 0o755)):
                os.makedirs(f"{run}/{name}", exist_ok=True)
                os.chmod(f"{run}/{name}", mode)
            os.mkdir(f"{run}/.nothing")
            _touch(f"{run}/.empty")
            self._bind(f"/proc/self/fd/{view}", f"{run}/lattice")
            if self._second_run != run and os.path.isdir(self._second_run):
                kernel.bind(run, self._second_run)
                self.covered.append(self._second_run)
        with Step("names of its own"):
            if not os.path.exists(self._hosts):
                raise Trouble(
                    "the sandbox cannot be made: this machine has no /etc/hosts that the sandbox's "
                    "own could be put over. Make one: touch /etc/hosts"
                )
            self._bind(f"{run}/lattice/{HOSTS}", self._hosts)
            if _below(self._resolv, (run,)):
                os.makedirs(os.path.dirname(self._resolv), exist_ok=True)
                _touch(self._resolv)
            # Without any the resolver asks 127.0.0.1, the sandbox's own.
            if os.path.exists(self._resolv):
                self._bind(f"{run}/lattice/{RESOLV}", self._resolv)

    def _make_proc(self) -> None:
        try:
            kernel.mount("proc", "/proc", "proc", _QUIET)
        except OSError as error:
            hiding = masked_proc()
            why = cause(error.errno or 0)
            if hiding is not None:
                why = (
                    f"{hiding} hides a part of /proc, as containers do, and then the kernel mounts "
                    "no /proc for a user namespace: docker run --security-opt "
                    "systempaths=unconfined, or procMount: Unmasked in Kubernetes"
                )
            raise Trouble(
                f"the sandbox cannot be made: a /proc of its own: {error.strerror}. {why}",
                number=error.errno or 0,
            ) from None
        with (
            Step("forbidding user namespaces in it"),
            open("/proc/sys/user/max_user_namespaces", "w") as file,
        ):
            file.write("0")
        with Step("closing /proc"):
            for path in _READ_ONLY:
                if os.path.exists(path):
                    self._bind(path, path)
            for path in _HIDDEN:
                self._hide(path)

    def _make_sys(self) -> None:
        """One that has the sandbox's interfaces, or else the machine's; in any case not to write.

        The control groups' limits stay to be read: language runtimes ask for them.
        """
        groups, kept = "/sys/fs/cgroup", f"{self._run}/.cgroup"
        with Step("closing /sys"):
            if not os.path.isdir("/sys/class"):
                return
            has_groups = os.path.isdir(groups)
            if has_groups:
                os.mkdir(kept)
                kernel.bind(groups, kept, recursive=True)
            try:
                kernel.mount("sysfs", "/sys", "sysfs", _QUIET | kernel.ATTR_READ_ONLY)
            except PermissionError:  # a part of it is hidden, as containers do
                kernel.restrict("/sys", _STRICT, recursive=True)
                for path in ("/sys/class/net", "/sys/devices/virtual/net"):
                    self._hide(path)
            if has_groups:
                kernel.restrict(kept, _STRICT, recursive=True)
                kernel.mount(kept, groups, "", kernel.MS_MOVE)
                os.rmdir(kept)

    def _make_dev(self) -> None:
        """For uid 0, which owns the machine's disks: few devices, and none but in ``/dev``."""
        stage = f"{self._run}/.dev"
        with Step("a /dev of its own"):
            kernel.restrict("/", kernel.ATTR_NODEV, recursive=True)
            os.mkdir(stage)
            kernel.mount("tmpfs", stage, "tmpfs", kernel.MS_NOSUID, "mode=0755")
            for name in os.listdir("/dev"):
                path, target = f"/dev/{name}", f"{stage}/{name}"
                if name not in _DEVICES and not name.startswith("nvidia"):
                    continue
                (os.mkdir if os.path.isdir(path) else _touch)(target)
                kernel.bind(path, target, recursive=True)
                kernel.restrict(target, 0, clear=kernel.ATTR_NODEV, recursive=True)
            for name, target in _LINKS.items():
                os.symlink(target, f"{stage}/{name}")
            # Whoever has no capability cannot make terminals in the machine's own file system.
            os.mkdir(f"{stage}/pts")
            options = "newinstance,ptmxmode=0666,mode=0620"
            kernel.mount("devpts", f"{stage}/pts", "devpts", _QUIET & ~kernel.MS_NODEV, options)
            terminal = _terminal()
            if terminal:
                # Under this name the caller's own is found (ttyname(3)).
                _touch(f"{stage}/console")
                kernel.bind(terminal, f"{stage}/console")
                kernel.restrict(f"{stage}/console", 0, clear=kernel.ATTR_NODEV)
            kernel.mount(stage, "/dev", "", kernel.MS_MOVE)
            os.rmdir(stage)
        self.covered.append("/dev")

    def _bind(self, source: str, target: str) -> None:
        kernel.bind(source, target)
        kernel.restrict(target, _STRICT)

    def _hide(self, path: str) -> None:
        """Put nothing over a file or directory, if it is there."""
        target = os.path.realpath(path)
        for left in reversed(range(_LOOKS)):
            try:
                if os.path.isdir(target):
                    self._bind(f"{self._run}/.nothing", target)
                    self.covered.append(target)
                elif os.path.exists(target):
                    self._bind(f"{self._run}/.empty", target)
            except OSError as error:
                if error.errno not in _GOING or (not left and os.path.exists(target)):
                    raise
                time.sleep(_BETWEEN_LOOKS)
            else:
                return


def _terminal() -> str:
    """The file of the caller's terminal; empty where there is none, or none by a name."""
    for descriptor in (0, 1, 2):
        try:
            name = os.ttyname(descriptor)
            if os.path.exists(name):
                return name
        except OSError:
            continue
    return ""


def working_directory() -> str | None:
    """Where this process is; ``None`` when that has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def enter_directory(path: str | None, view: View) -> None:
    """Be in the directory of this name inside.

    Never in the one that this process came with if that is covered: its ``..`` leads outside.

    Raises:
        Trouble: there is none of this name.
    """
    if path is None:
        # As outside: one that has been removed, but with nothing above it.
        place = "/run/.removed"
        os.mkdir(place)
        os.chdir(place)
        os.rmdir(place)
    elif _below(path, view.covered):
        try:
            os.chdir(path)
        except OSError:
            raise Trouble(
                f"the working directory {path} is not in the sandbox, which has a {view.covered[0]}"
                " of its own and sees no secrets of the agent: start it from another directory"
            ) from None


def _below(path: str, tops: tuple[str, ...] | list[str]) -> bool:
    return any(path == top or path.startswith(f"{top}/") for top in tops)


def _directory(path: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise Trouble(
            f"the sandbox cannot be made: this machine has no directory {path}, which the sandbox "
            f"has one of its own over. Make it: mkdir {path}"
        )
    return real


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
