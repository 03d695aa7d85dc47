"""What all commands that speak to the control plane share: their options, and the connection."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from lattice_sdk.cli.failures import FORMAT_KEY
from lattice_sdk.cli.output import Format

if TYPE_CHECKING:
    from pydantic import SecretStr

    from lattice_sdk.client import ControlPlane
    from lattice_sdk.config import Settings

T = TypeVar("T")
CONNECTION = "Control plane"


def _remember(ctx: typer.Context, value: Format) -> Format:
    # The root command tells errors in the format that the command was asked for.
    ctx.meta[FORMAT_KEY] = value
    return value


Output = Annotated[
    Format,
    typer.Option("--output", "-o", callback=_remember, help="How the result is printed."),
]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", "-w", metavar="ID", help="Workspace [LATTICE_WORKSPACE]."),
]
_OPTIONS: dict[str, Any] = {
    "server": Annotated[
        str | None,
        typer.Option(metavar="URL", help="[LATTICE_SERVER]", rich_help_panel=CONNECTION),
    ],
    "token_file": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the token [LATTICE_TOKEN_FILE]",
            rich_help_panel=CONNECTION,
        ),
    ],
    "token": Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="The token. Other users see arguments (ps): prefer LATTICE_TOKEN or --token-file.",
            rich_help_panel=CONNECTION,
        ),
    ],
    "ca_file": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate authorities, PEM [LATTICE_CA_FILE]",
            rich_help_panel=CONNECTION,
        ),
    ],
    "output": Output,
}


@dataclass(frozen=True)
class Session:
    """What a command was called with.

    Attributes:
        settings: arguments, else environment, else config file.
        output: how to print.
    """

    settings: Settings
    output: Format

    @property
    def server(self) -> str:
        """URL of the control plane.

        Raises:
            ConfigurationError: none is set.
        """
        from lattice_sdk.errors import ConfigurationError

        if self.settings.server:
            return self.settings.server
        raise ConfigurationError(
            "no control plane is named",
            hint="Pass --server URL or set LATTICE_SERVER; `lattice dev` starts one and prints it",
        )

    def workspace(self, given: str | None) -> str | None:
        """The workspace: the command's argument, else the setting."""
        return given or self.settings.workspace

    def token(self) -> SecretStr | None:
        """The token that is set, or the one a plugin gives (``lattice_credentials``)."""
        token = self.settings.secret()
        if token is not None:
            return token
        from pydantic import SecretStr

        from lattice_sdk import plugins

        found = plugins.manager().hook.lattice_credentials(
            server=self.server, workspace_id=self.settings.workspace
        )
        return found if isinstance(found, SecretStr) or not found else SecretStr(str(found))

    def run(self, work: Callable[[ControlPlane], Awaitable[T]]) -> T:
        """Do something with a connection to the control plane."""

        async def connected() -> T:
            async with self.control_plane() as plane:
                return await work(plane)

        return asyncio.run(connected())

    def control_plane(self, timeout: float | None = None) -> ControlPlane:
        """A client; made inside the event loop that uses it. ``timeout`` in seconds."""
        from lattice_sdk.client import ControlPlane

        return ControlPlane(
            self.server,
            self.token(),
            verify=self.settings.ca_file or True,
            timeout=timeout or self.settings.timeout,
        )


def needed_workspace(session: Session, given: str | None) -> str:
    """The workspace.

    Raises:
        ConfigurationError: none is set.
    """
    from lattice_sdk.errors import ConfigurationError

    workspace = session.workspace(given)
    if workspace is None:
        raise ConfigurationError(
            "no workspace is named", hint="Pass --workspace ID, or set LATTICE_WORKSPACE"
        )
    return workspace


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function whose first parameter is a :class:`Session`.

    Its place is taken by the options that say where the control plane is and how to print.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    hints = get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in own]
    defaults: dict[str, Any] = {"output": Format.table}
    parameters += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name),
            annotation=annotation,
        )
        for name, annotation in _OPTIONS.items()
    ]

    def wrapper(*args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS}
        output = Format(options.pop("output"))
        command(Session(_settings(**options), output), *args, **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__module__ = command.__module__
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapper


def _settings(**given: Any) -> Settings:
    from lattice_sdk.config import load

    settings = load(**given)
    if given["token_file"] is not None and given["token"] is None:
        # An argument wins over the environment, also where they are two ways to say one thing.
        settings = settings.model_copy(update={"token": None})
    return settings
