import stat
from pathlib import Path

import pytest

from lattice_server.gateway import GatewayError, GatewaySettings
from lattice_server.gateway.state import StateDirectory


def settings(**given: object) -> GatewaySettings:
    return GatewaySettings(
        **{  # type: ignore[arg-type]
            "server": "http://127.0.0.1:8420",
            "token_file": Path("token"),
            "state_dir": Path("state"),
            **given,
        }
    )


@pytest.mark.parametrize(
    ("endpoint", "completed"),
    [
        (None, "127.0.0.1:7"),
        ("gw.example", "gw.example:7"),
        ("gw.example:99", "gw.example:99"),
        ("192.0.2.1", "192.0.2.1:7"),
        ("2001:db8::1", "[2001:db8::1]:7"),
        ("[2001:db8::1]", "[2001:db8::1]:7"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_endpoint_is_completed_with_the_port(endpoint: str | None, completed: str) -> None:
    assert settings(endpoint=endpoint).endpoint_at(7) == completed


def test_stream_url_follows_the_servers() -> None:
    assert settings().stream_url == "ws://127.0.0.1:8420/api/v1/gateway/stream"
    secure = settings(server="https://lattice.example/", endpoint="gw")
    assert secure.stream_url == "wss://lattice.example/api/v1/gateway/stream"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"server": "lattice.example"}, "not a URL"),
        ({"server": "https://lattice.example"}, "--endpoint"),
        ({"address": "10.96.0.1/99"}, "IPv4 address with a prefix"),
        ({"listen_port": 70000}, "listen port"),
    ],
)
def test_wrong_settings_say_what_to_do(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(GatewayError, match=says):
        settings(**wrong)


@pytest.mark.parametrize("content", [None, "", "two words", "ключ"])
def test_unusable_token_file(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(GatewayError, match="token"):
        settings(token_file=file).token()


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "state")
    public = first.public_key()
    assert stat.S_IMODE(first.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    first.close()
    again = StateDirectory(tmp_path / "state")
    assert again.public_key() == public
    assert sorted(p.name for p in again.path.iterdir()) == ["lock", "private.key"]
    again.close()


def test_a_state_directory_serves_one_daemon(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    with pytest.raises(GatewayError, match="another gateway daemon"):
        StateDirectory(tmp_path)
    state.close()
    StateDirectory(tmp_path).close()


def test_a_directory_of_others_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "somebody's").touch()
    with pytest.raises(GatewayError, match="has other files"):
        StateDirectory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_spoiled_key_is_refused(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.key_file.write_text("not a key\n")
    with pytest.raises(GatewayError, match="not a readable WireGuard private key"):
        state.public_key()
    state.close()


def test_a_long_path_gets_no_socket_of_the_directory(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / ("d" * 100))
    assert state.engine_dir is None
    state.close()
