"""What a program in a sandbox sees of files, and of the caller's environment and descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from lattice_sdk.sandbox import kernel
from lattice_sdk.sandbox.spec import NAMESPACE, Spec
from lattice_sdk.sandbox.view import View
from support.sandboxes import Sandbox

root_only = pytest.mark.skipif(os.getuid() != 0, reason="changes the machine's mounts")


@pytest.fixture
def place(sandbox: Sandbox) -> Iterator[Path]:
    """A directory of the sandbox's user, outside of what it covers."""
    with tempfile.TemporaryDirectory(prefix="lattice-place-") as name:
        os.chown(name, sandbox.uid, sandbox.uid)
        yield Path(name)


def test_names_are_the_sandboxs_own(sandbox: Sandbox) -> None:
    inside = sandbox.script("import socket; print(socket.gethostbyname('github-tools.lattice'))")
    assert inside == "10.96.0.7"
    assert sandbox.run("cat", "/etc/resolv.conf").stdout == "nameserver 127.0.0.1\n"
    assert Path("/etc/hosts").read_text() != sandbox.run("cat", "/etc/hosts").stdout


def test_unknown_names_fail_at_once(sandbox: Sandbox) -> None:
    code = """
import socket, time
began = time.monotonic()
try:
    socket.getaddrinfo("attacker.example", 443)
except socket.gaierror:
    print(time.monotonic() - began < 2)
"""
    assert sandbox.script(code) == "True"


@pytest.mark.parametrize("name", ["hosts", "resolv.conf"])
def test_names_cannot_be_changed_inside(sandbox: Sandbox, name: str) -> None:
    done = sandbox.run("sh", "-c", f"echo 6.6.6.6 github-tools.lattice > /etc/{name}")
    assert done.returncode != 0
    assert "ead-only" in done.stderr or "denied" in done.stderr


def test_names_follow_the_agent(own_sandbox: Sandbox) -> None:
    """A renewal writes the file that is mounted, in place."""
    with own_sandbox.popen(
        "sh",
        "-c",
        "read -r _; cat /etc/hosts",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        hosts = Path(own_sandbox.spec.view) / "hosts"
        with hosts.open("r+") as file:
            file.write("127.0.0.1 localhost\n10.96.0.9 later.lattice\n" + "\n" * 9)
        assert "later.lattice" in running.communicate("go\n", timeout=20)[0]


def test_identity_is_there_to_read_and_not_to_write(sandbox: Sandbox) -> None:
    assert sandbox.run("cat", "/run/lattice/identity.json").stdout == '{"peerId": "peer-1"}'
    assert sandbox.script("import os; print(os.environ['LATTICE_SANDBOX'])") == (
        "/run/lattice/identity.json"
    )
    assert sandbox.run("sh", "-c", "echo > /run/lattice/identity.json").returncode != 0
    assert sandbox.run("touch", "/run/lattice/more").returncode != 0


def test_run_has_nothing_of_the_machines(sandbox: Sandbox) -> None:
    found = set(sandbox.script("import os; print(*os.listdir('/run'))").split())
    links = {entry.name for entry in os.scandir("/run") if entry.is_symlink()}
    assert found - links == {"lattice", "lock", "user"}
    mine = f"/run/user/{sandbox.uid}"
    code = f"import os; print(oct(os.stat('{mine}').st_mode)[-3:], os.listdir('{mine}'))"
    assert sandbox.script(code) == "700 []"
    assert sandbox.run("touch", f"{mine}/x", "/run/lock/x").returncode == 0
    assert sandbox.script("import os; print(os.listdir('/var/run') == os.listdir('/run'))") == (
        "True"
    )


def test_runtime_directory_is_the_new_one(sandbox: Sandbox) -> None:
    code = "import os; print(os.environ.get('XDG_RUNTIME_DIR'))"
    environment = {"PATH": os.environ["PATH"]}
    assert sandbox.script(code, env=environment) == "None"
    environment["XDG_RUNTIME_DIR"] = "/run/user/4711"
    assert sandbox.script(code, env=environment) == f"/run/user/{sandbox.uid}"


def test_agents_secrets_are_not_there(sandbox: Sandbox) -> None:
    code = f"import os; print(os.listdir({str(sandbox.directory)!r}))"
    assert sandbox.script(code) == "[]"
    assert sandbox.run("touch", f"{sandbox.directory}/x").returncode != 0


def test_masked_file_is_empty(own_sandbox: Sandbox) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("lt-secret")
        file.flush()
        os.chown(file.name, own_sandbox.uid, own_sandbox.uid)
        assert own_sandbox.run("cat", file.name).stdout == "lt-secret"
        own_sandbox.spec.masked += [file.name, "/nonexistent/token"]
        own_sandbox.write()
        assert own_sandbox.run("cat", file.name).stdout == ""
        assert own_sandbox.run("sh", "-c", f"echo > {file.name}").returncode != 0
        assert Path(file.name).read_text() == "lt-secret"


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("step", ["bind", "restrict"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL, errno.ENOTDIR])
@pytest.mark.parametrize("after", [1, 3, None])
def test_what_goes_while_it_is_hidden_needs_no_hiding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    step: str,
    number: int,
    after: int | None,
) -> None:
    """As the directory of another agent's engine goes; what stays and is not hidden is an error."""
    secret = tmp_path / "secret"
    (secret.mkdir if kind == "directory" else secret.touch)()
    tries = 0

    def fail(*_: object) -> None:
        nonlocal tries
        tries += 1
        if tries == after:
            (secret.rmdir if kind == "directory" else secret.unlink)()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernel, "bind", lambda *_: None)
    monkeypatch.setattr(kernel, step, fail)
    view = View(Spec(NAMESPACE))
    if after is None:
        with pytest.raises(OSError, match=os.strerror(number)):
            view._hide(str(secret))
    else:
        view._hide(str(secret))
        assert tries == after
    assert str(secret) not in view.covered


def test_what_cannot_be_hidden_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "bind", Mock(side_effect=PermissionError(errno.EPERM, "not now")))
    with pytest.raises(PermissionError, match="not now"):
        View(Spec(NAMESPACE))._hide(str(tmp_path))


@root_only
def test_directories_that_come_and_go_never_stop_a_sandbox(own_sandbox: Sandbox) -> None:
    """The real kernel: what is hidden is removed, over and over, while sandboxes start."""
    with tempfile.TemporaryDirectory(prefix="lattice-place-") as place:
        names = [f"{place}/{number}" for number in range(40)]
        own_sandbox.spec.masked += names
        own_sandbox.write()
        ended = threading.Event()

        def come_and_go() -> None:
            while not ended.is_set():
                for name in names:
                    os.mkdir(name)
                for name in names:
                    os.rmdir(name)

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(come_and_go)
            try:
                done = [own_sandbox.run("true") for _ in range(10)]
            finally:
                ended.set()
            running.result()
    assert [each.returncode for each in done] == [0] * 10, [each.stderr for each in done]


def test_other_files_are_as_outside(sandbox: Sandbox, place: Path) -> None:
    done = sandbox.run("sh", "-c", f"echo hello > {place}/made && cat {place}/made")
    assert done.stdout == "hello\n"
    assert (place / "made").read_text() == "hello\n"
    assert (place / "made").stat().st_uid == sandbox.uid


def test_interfaces_are_the_namespaces(sandbox: Sandbox) -> None:
    assert sandbox.script("import os; print(os.listdir('/sys/class/net'))") == "['lo']"
    assert sandbox.script("import socket; print(*[n for _, n in socket.if_nameindex()])") == "lo"


@pytest.mark.parametrize("path", ["kernel/core_pattern", "vm/overcommit_memory"])
def test_kernel_cannot_be_told_anything(sandbox: Sandbox, path: str) -> None:
    """uid 0 owns these files, and writes them without any capability."""
    done = sandbox.run("sh", "-c", f"cat /dev/null >> /proc/sys/{path}")
    assert done.returncode != 0
    assert "ead-only" in done.stderr or "denied" in done.stderr


def test_sys_and_control_groups_are_to_be_read(sandbox: Sandbox) -> None:
    code = """
import os
writable = [path for path, _, _ in os.walk("/sys") if os.access(path, os.W_OK)]
print(len(os.listdir("/sys/fs/cgroup")) > 0, writable[:3])
"""
    assert sandbox.script(code) == "True []"


def test_root_has_few_devices(sandbox: Sandbox) -> None:
    code = """
import os, stat
def kinds(top):
    for path, names, files in os.walk(top):
        for name in files:
            yield f"{path}/{name}"
blocks = []
for name in kinds("/dev"):
    try:
        if stat.S_ISBLK(os.stat(name).st_mode):
            os.close(os.open(name, os.O_RDONLY))
            blocks.append(name)
    except OSError:
        pass
os.close(os.open("/dev/null", os.O_RDWR))
os.close(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
print(blocks, os.path.exists("/dev/urandom"), os.path.exists("/dev/fd/0"))
"""
    assert sandbox.script(code) == "[] True True"


@root_only
def test_device_outside_of_dev_does_not_open_for_root(tmp_path: Path) -> None:
    with Sandbox(0) as sandbox:
        node = tmp_path / "null"
        os.mknod(node, 0o20666, os.makedev(1, 3))
        node.open().close()
        assert "ermission denied" in sandbox.run("cat", str(node)).stderr


@root_only
def test_second_proc_of_the_machine_is_covered(sandbox: Sandbox, place: Path) -> None:
    """A chroot's, say: through it root would write core_pattern."""
    machine = f"mount -t proc proc {place}"
    assert sandbox.run("ls", str(place), machine=machine).stdout == ""
    assert sandbox.run("ls", str(place)).stdout == ""


@root_only
def test_name_server_behind_a_link_into_run(sandbox: Sandbox) -> None:
    """As systemd-resolved has it: the link's target is in the /run that is covered."""
    machine = """
cp -a /etc /run/etc-of-test && mount --bind /run/etc-of-test /etc
mkdir -p /run/etc-of-test-resolve && rm /etc/resolv.conf
ln -s ../run/etc-of-test-resolve/stub.conf /etc/resolv.conf
echo nameserver 9.9.9.9 > /run/etc-of-test-resolve/stub.conf
"""
    with _removed("/run/etc-of-test", "/run/etc-of-test-resolve"):
        done = sandbox.run("cat", "/etc/resolv.conf", machine=f"mount -t tmpfs t /run\n{machine}")
    assert done.stdout == "nameserver 127.0.0.1\n", done.stderr


@root_only
def test_run_that_is_a_link(sandbox: Sandbox) -> None:
    machine = """
mount -t tmpfs t /mnt
for each in /*; do
  name=${each#/}
  case $name in run|mnt) continue;; esac
  if [ -L "$each" ]; then cp -a "$each" /mnt/; continue; fi
  if [ -d "$each" ]; then mkdir "/mnt/$name"; mount --rbind "$each" "/mnt/$name"; fi
done
mkdir /mnt/real-run /mnt/mnt /mnt/real-run/secret && ln -s real-run /mnt/run
cd /mnt && pivot_root . mnt && umount -l /mnt && cd /
"""
    script = "ls /run/ /real-run/ /var/run/; cat /run/lattice/identity.json"
    done = sandbox.run("sh", "-c", script, machine=machine)
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout
    assert done.stdout.count("lattice") == 3
    assert "peer-1" in done.stdout


def test_working_directory_is_kept(sandbox: Sandbox, place: Path) -> None:
    assert sandbox.run("pwd", cwd=place).stdout.strip() == str(place)
    assert sandbox.run("pwd", options=("--cwd", str(place))).stdout.strip() == str(place)


@root_only
def test_working_directory_in_run_is_the_new_run(sandbox: Sandbox) -> None:
    """The one that the program came with would have what is hidden beside it."""
    machine = "mount -t tmpfs t /run; mkdir /run/lock /run/deep; touch /run/lock/secret; cd /run"
    done = sandbox.run("sh", "-c", "pwd; ls", machine=f"{machine}/lock")
    assert (done.stdout, done.stderr) == ("/run/lock\n", "")
    done = sandbox.run("true", machine=f"{machine}/deep")
    assert done.returncode == 125
    assert "the working directory /run/deep is not in the sandbox" in done.stderr


@root_only
def test_second_run_of_the_machine_is_covered(sandbox: Sandbox) -> None:
    machine = "mount -t tmpfs t /var; mkdir /var/run /var/run/secret"
    done = sandbox.run("ls", "/var/run", machine=machine)
    assert "lattice" in done.stdout
    assert "secret" not in done.stdout


def test_working_directory_that_has_been_removed(sandbox: Sandbox, place: Path) -> None:
    """Outside its ``..`` is outside; inside there is nothing above it."""
    (place / "gone").mkdir()
    os.chown(place / "gone", sandbox.uid, sandbox.uid)
    command = sandbox.command("sh", "-c", "ls; ls /proc/self/cwd/..")
    script = 'cd gone && rmdir ../gone && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=20,
        **sandbox._as_user(),
    )
    assert str(place.name) not in done.stdout
    assert done.returncode != 125, done.stderr


ENVIRONMENT = {
    "LATTICE_TOKEN": "lt-secret",
    "LATTICE_TOKEN_FILE": "/x",
    "LATTICE_SERVER_DATABASE": "postgres://u:secret@x/",
    "HTTP_PROXY": "http://user:secret@127.0.0.1:1",
    "https_proxy": "http://user:secret@127.0.0.1:1",
    "no_proxy": "localhost",
    "KEPT": "=a b\n",
    "EMPTY": "",
}


def test_environment_is_the_callers_without_secrets(sandbox: Sandbox) -> None:
    path = os.environ["PATH"]
    done = sandbox.run("env", "-0", env=ENVIRONMENT | {"PATH": path})
    assert set(done.stdout.split("\0")) == {
        "",
        f"PATH={path}",
        "KEPT==a b\n",
        "EMPTY=",
        "LATTICE_SANDBOX=/run/lattice/identity.json",
    }


def test_memory_of_the_first_process_hides_the_callers_environment(sandbox: Sandbox) -> None:
    name = "environ" if sandbox.uid else "mem"  # the first of root's can be read by name alone
    code = f"open('/proc/1/{name}', 'rb').read()"
    done = sandbox.run(sandbox.python, "-I", "-c", code, env=ENVIRONMENT)
    assert "Permission" in done.stderr or "not permitted" in done.stderr


def descriptors(sandbox: Sandbox, **settings: object) -> set[int]:
    """Open ones, inside."""
    code = "import os; print(*os.listdir('/proc/self/fd'))"
    numbers = set(map(int, sandbox.script(code, **settings).split()))
    return numbers - {max(numbers)}  # of the listing itself


def test_descriptors_do_not_get_in(sandbox: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w+") as file, socket.socket() as host:
        given = (file.fileno(), host.fileno())
        kept = descriptors(sandbox, pass_fds=given)
        assert kept == {0, 1, 2}


def test_descriptors_that_are_named_get_in(sandbox: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "data").open("w+") as file:
        number = file.fileno()
        options = ("--fds", str(number))
        code = f"import os; os.write({number}, b'from inside')"
        sandbox.script(code, pass_fds=(number,), options=options)
        file.seek(0)
        assert file.read() == "from inside"


@pytest.mark.parametrize("kind", ["tcp", "udp", "listening", "datagram", "named"])
def test_sockets_of_the_host_are_refused(sandbox: Sandbox, kind: str, place: Path) -> None:
    """A connected one could be disconnected, and connected to anywhere."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        if kind == "tcp":
            given = stack.enter_context(socket.create_connection(listener.getsockname()))
        elif kind == "udp":
            given = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            given.connect(listener.getsockname())
        elif kind == "listening":
            given = stack.enter_context(socket.socket(socket.AF_UNIX))
            given.bind(str(place / "socket"))
            given.listen()
        elif kind == "datagram":
            given = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]
            stack.enter_context(given)
        else:
            given = stack.enter_context(socket.socket(socket.AF_UNIX))
        done = sandbox.run("true", stdin=given)
        assert done.returncode == 125
        assert "descriptor 0 is a socket of the host's network" in done.stderr


def test_pair_of_stream_sockets_may_be_standard_input(sandbox: Sandbox) -> None:
    """What Node and asyncio make for pipes; its other end is fixed."""
    mine, given = socket.socketpair()
    with mine, given:
        mine.sendall(b"hello\n")
        assert sandbox.run("head", "-1", stdin=given).stdout == "hello\n"


def test_directory_of_outside_is_refused(sandbox: Sandbox) -> None:
    directory = os.open("/proc", os.O_RDONLY)
    try:
        options = ("--fds", str(directory))
        done = sandbox.run("true", options=options, pass_fds=(directory,))
        assert sandbox.run("true", stdin=directory).returncode != 0
    finally:
        os.close(directory)
    assert done.returncode == 125
    assert f"descriptor {directory} is an open directory of outside" in done.stderr


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_descriptor_is_closed_inside(sandbox: Sandbox, closed: int) -> None:
    """And nothing of the launcher's comes in its place."""
    sign = "<" if closed == 0 else ">"
    look = f"[ -e /proc/$$/fd/{closed} ] && exit 9; exit 5"
    bare = ["sh", "-c", f'exec "$@" {closed}{sign}&-', "sh", "sh", "-c", look]
    script = [*bare[:4], *sandbox.command("sh", "-c", look)]
    for command in (bare, script):
        done = subprocess.run(command, cwd="/", timeout=20, check=False, **sandbox._as_user())
        assert done.returncode == 5


@contextlib.contextmanager
def _removed(*paths: str) -> Iterator[None]:
    try:
        yield
    finally:
        for path in paths:
            assert not Path(path).exists(), "the test changed the machine"
