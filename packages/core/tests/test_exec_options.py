"""The quick reading of ``lattice exec`` means the same as the slow one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lattice_sdk import config
from lattice_sdk.cli import build
from lattice_sdk.errors import ConfigurationError
from lattice_sdk.execution.options import (
    REPEATED,
    SINGLE,
    SWITCHES,
    HelpWanted,
    Options,
    UsageError,
    parse,
)
from lattice_sdk.execution.settings import ordinary


def test_options_are_those_that_help_shows() -> None:
    command: Any = typer.main.get_command(build())
    shown: dict[str, Any] = {}
    for parameter in command.commands["exec"].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            shown |= dict.fromkeys((*parameter.opts, *parameter.secondary_opts), parameter)
    assert set(shown) == {*SINGLE, *REPEATED, *SWITCHES}
    for name in SWITCHES:
        assert shown[name].is_flag
    for name in REPEATED:
        assert shown[name].multiple
    for name, attribute in SINGLE.items():
        assert shown[name].name == attribute


def test_command_line_is_read_up_to_the_program() -> None:
    words = ["--preset=coordinator", "--allow", "10.0.0.1:80", "--allow", "a.example:53/udp"]
    words += ["--forward", "9000:127.0.0.1:9001", "--unix-sockets", "-w", "ws", "--"]
    options = parse([*words, "program", "--preset", "isolated", "--", "-x"])
    assert options.command == ["program", "--preset", "isolated", "--", "-x"]
    assert (options.preset, options.workspace, options.unix_sockets) == ("coordinator", "ws", True)
    assert options.allow == [
        {"to": "10.0.0.1", "port": 80, "protocol": "tcp"},
        {"to": "a.example", "port": 53, "protocol": "udp"},
    ]
    assert options.forward == {9000: "127.0.0.1:9001"}
    assert parse(["program", "--help"]).command == ["program", "--help"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--"],
        ["--preset"],
        ["--preset", "x"],
        ["--nonsense", "--", "true"],
        ["--unix-sockets=yes", "true"],
        ["--allow", "x", "true"],
        ["--forward", "x", "true"],
    ],
)
def test_wrong_usage_is_told(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(words)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--preset", "x", "--help", "--", "true"]])
def test_help_is_left_to_the_library(words: list[str]) -> None:
    with pytest.raises(HelpWanted):
        parse(words)


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        (["true"], None),
        (["--allow", "a:1", "true"], "isolated"),
        (["--allow", "a:1", "--preset", "coordinator", "true"], "coordinator"),
    ],
)
def test_allow_makes_the_preset_isolated(words: list[str], preset: str | None) -> None:
    assert parse(words).policy_preset == preset


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("python3", "python3"),
        ("/usr/bin/curl", "curl"),
        ("./-odd name", "exec"),
        ("x" * 200, "exec"),
    ],
)
def test_agent_is_called_as_its_program(program: str, name: str) -> None:
    assert parse(["--", program]).agent_name == name
    assert parse(["--name", "given", "--", program]).agent_name == "given"


SERVER, TOKEN = "https://lattice.example.com", "lt-token"
GOOD = {"LATTICE_SERVER": SERVER, "LATTICE_TOKEN": TOKEN}
CASES: list[tuple[dict[str, str], str, list[str], bool]] = [
    # environment, config file, arguments, whether it is ordinary
    (GOOD, "", [], True),
    ({**GOOD, "LATTICE_WORKSPACE": "ws", "LATTICE_BACKEND": "netns"}, "", [], True),
    ({**GOOD, "LATTICE_ISOLATION": "required"}, "", [], True),
    ({**GOOD, "LATTICE_TOKEN": ""}, "", ["--token", "lt-other"], True),
    (GOOD, "", ["--server", "http://127.0.0.1:8420/", "--workspace", "ws"], True),
    ({"LATTICE_SERVER": SERVER}, 'token = "lt-file"', [], True),
    (GOOD, 'token = "lt-file"\nserver = "https://other.example"\nworkspace = "f"', [], True),
    ({**GOOD, "LATTICE_CA_FILE": "/etc/ca.pem"}, "", [], True),
    ({"LATTICE_SERVER": SERVER}, "", [], False),
    ({"LATTICE_TOKEN": TOKEN}, "", [], False),
    ({**GOOD, "LATTICE_SERVER": "ftp://x"}, "", [], False),
    ({**GOOD, "LATTICE_SERVER": "https://user:secret@x"}, "", [], False),
    ({**GOOD, "LATTICE_BACKEND": "userspace"}, "", [], False),
    ({**GOOD, "LATTICE_ISOLATION": "proxy"}, "", [], False),
    ({**GOOD, "LATTICE_ISOLATION": "total"}, "", [], False),
    ({**GOOD, "LATTICE_STATE_DIR": "/x"}, "", [], False),
    ({**GOOD, "LATTICE_TIMEOUT": "3"}, "", [], False),
    ({**GOOD, "Lattice_Workspace": "ws"}, "", [], False),
    (GOOD, "timeout = 3", [], False),
    (GOOD, "workspace = 3", [], False),
    (GOOD, "no toml", [], False),
    ({**GOOD, "https_proxy": "http://proxy.example:3128"}, "", [], False),
    ({**GOOD, "LATTICE_DISABLE_PLUGINS": "0"}, "", [], True),
    (GOOD, "", ["--forward", "80:80"], False),
    (GOOD, "", ["--allow", "*.example.org:443"], False),
    ({**GOOD, "LATTICE_SOMETHING_NEW": "x"}, "", [], False),
    ({**GOOD, "LATTICE_SERVER_PORT": "8420", "LATTICE_DEBUG": "1"}, "", [], True),
    (GOOD, 'something_new = "x"', [], False),
]


@pytest.mark.parametrize(("environment", "file", "words", "is_ordinary"), CASES)
def test_ordinary_settings_are_those_of_the_sdk(
    environment: dict[str, str],
    file: str,
    words: list[str],
    is_ordinary: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("LATTICE_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if file:
        (tmp_path / "config.toml").write_text(file)
    monkeypatch.setenv("LATTICE_CONFIG", str(tmp_path / "config.toml"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = parse([*words, "--", "true"])
    found = ordinary(options)
    assert (found is not None) is is_ordinary
    if found is not None:
        same_as(options, found)


def same_as(options: Options, found: Any) -> None:
    names = ("server", "token", "token_file", "workspace", "backend", "isolation", "ca_file")
    settings = config.load(**{name: getattr(options, name) for name in names})
    secret, server = settings.secret(), settings.server
    assert secret is not None
    assert server is not None
    assert found.token == secret.get_secret_value()
    assert found.server == server.rstrip("/")
    assert found.workspace == settings.workspace
    assert found.isolation == (settings.isolation or "preferred")
    assert found.ca_file == (str(settings.ca_file) if settings.ca_file else "")


def test_token_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" lt-of-a-file\n")
    monkeypatch.setenv("LATTICE_SERVER", SERVER)
    monkeypatch.setenv("LATTICE_TOKEN", "lt-environment")
    monkeypatch.setenv("LATTICE_CONFIG", str(tmp_path / "none"))
    found = ordinary(parse(["--token-file", str(file), "--", "true"]))
    assert found is not None
    assert found.token == "lt-of-a-file"
    assert str(file) in found.secret_files
    file.write_text("")
    assert ordinary(parse(["--token-file", str(file), "--", "true"])) is None


def test_foreign_plugin_is_out_of_the_ordinary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may offer a backend, or want to be told of the enrollment."""
    for name, value in {**GOOD, "LATTICE_CONFIG": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LATTICE_DISABLE_PLUGINS", raising=False)
    options = parse(["--", "true"])
    assert ordinary(options) is not None
    distribution = tmp_path / "diary-1.0.dist-info"
    distribution.mkdir()
    (distribution / "entry_points.txt").write_text(
        "[console_scripts]\nx = a:b\n[lattice]\nd = a.b\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ordinary(options) is None
    monkeypatch.setenv("LATTICE_DISABLE_PLUGINS", "1")
    assert ordinary(options) is not None


HEAVY = {"httpx", "pydantic", "cryptography", "pluggy", "typer", "rich", "asyncio", "logging"}


def test_start_loads_nothing_heavy() -> None:
    code = """
import sys
import lattice_sdk.cli, lattice_sdk.execution.main, lattice_sdk.execution.quick
import lattice_sdk.execution.child, lattice_engine._process
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_launcher_loads_next_to_nothing() -> None:
    code = """
import sys
from lattice_sdk.sandbox import enter
sys.modules.pop("lattice_sdk")
enter._load()
before = set(sys.modules)
import lattice_sdk.sandbox.launcher
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {SOURCE!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split()) - {"lattice_sdk"}
    assert loaded <= {"ctypes", "_ctypes", "_struct", "struct", "select", "errno", "time", "types"}


SOURCE = str(Path(config.__file__).parent.parent)


def test_unknown_isolation_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="isolation"):
        config.load(isolation="total")
