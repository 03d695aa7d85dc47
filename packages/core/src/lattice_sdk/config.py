"""Settings of SDK and CLI: arguments, then ``LATTICE_*`` of the environment, then a config file."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from lattice_sdk.backends.choice import Wanted
from lattice_sdk.errors import ConfigurationError

TOKEN_BYTES = 64 * 1024  # a token file that is larger is not a token file


def config_path() -> Path:
    """The config file: ``LATTICE_CONFIG``, or ``lattice/config.toml`` in the XDG config home."""
    named = os.environ.get("LATTICE_CONFIG")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "lattice" / "config.toml"


class Settings(BaseSettings):
    """All settings, each also ``LATTICE_<NAME>``. Made by :func:`load`."""

    model_config = SettingsConfigDict(
        env_prefix="LATTICE_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    server: str | None = Field(None, description="URL of the control plane")
    token: SecretStr | None = Field(None, description="workspace or admin token")
    token_file: Path | None = Field(None, description="file with the token, instead of it")
    workspace: str | None = Field(None, description="workspace id")
    backend: str | None = Field(None, description="tunnel backend: netns, userspace, none, …")
    isolation: Wanted | None = Field(None, description="required, preferred or proxy")
    state_dir: Path | None = Field(None, description="where an identity survives a restart")
    ca_file: Path | None = Field(None, description="certificate authorities of the control plane")
    rotate_keys: bool = Field(False, description="a new key with each renewal")
    timeout: float = Field(30.0, gt=0, description="seconds until an enrollment is given up")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, and that over the config file."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=config_path())
        return init_settings, env_settings, file

    def secret(self) -> SecretStr | None:
        """The token, read from ``token_file`` if that is what is set.

        Raises:
            ConfigurationError: the file cannot be read, or is empty.
        """
        if self.token is not None or self.token_file is None:
            return self.token
        try:
            with self.token_file.expanduser().open("rb") as file:
                text = file.read(TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(
                f"the token file {self.token_file} cannot be read: {why}",
                hint="Correct LATTICE_TOKEN_FILE, or set LATTICE_TOKEN",
            ) from None
        if not text:
            raise ConfigurationError(f"the token file {self.token_file} is empty")
        return SecretStr(text)


def load(**arguments: Any) -> Settings:
    """Settings with what was given as arguments; ``None`` means not given.

    Raises:
        ConfigurationError: a setting has a wrong form, or the config file is not TOML.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if isinstance(given.get("token"), SecretStr):
        given["token"] = given["token"].get_secret_value()
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors(include_input=False, include_context=False, include_url=False)
        )
        raise ConfigurationError(
            f"a setting is wrong: {wrong}", hint=f"Look at LATTICE_* and {config_path()}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the config file {config_path()} is not TOML: {error}") from None
    except OSError as error:
        raise ConfigurationError(
            f"the config file {config_path()} cannot be read: {error.strerror}"
        ) from None


def needed_server(settings: Settings) -> str:
    """The control plane's URL.

    Raises:
        ConfigurationError: none is set.
    """
    if settings.server:
        return settings.server
    raise ConfigurationError(
        "no control plane is named",
        hint="Pass server=…, or set LATTICE_SERVER; `lattice dev` starts one and prints it",
    )
