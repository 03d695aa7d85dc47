"""From arguments and settings to the terms of an enrollment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from lattice_sdk import config
from lattice_sdk.backends.choice import USUAL, Wanted
from lattice_sdk.client import check_server
from lattice_sdk.durations import format_duration
from lattice_sdk.enrollment import Terms
from lattice_sdk.errors import ConfigurationError, InvalidRequest
from lattice_sdk.wire import EnrollRequest

M = TypeVar("M", bound=BaseModel)


def make_terms(
    *,
    server: str | None,
    token: str | SecretStr | None,
    workspace: str | None,
    backend: str | None = None,
    isolation: Wanted | None = None,
    state_dir: Path | str | None = None,
    verify: Path | str | bool | None = None,
    rotate_keys: bool | None = None,
    timeout: float | None = None,
    request: dict[str, Any],
    service: bool = False,
) -> Terms:
    """Read arguments, environment and config file into one thing.

    Raises:
        ConfigurationError: a setting is missing or wrong.
        InvalidRequest: a name, a duration or a rule has a wrong form; it was not sent.
    """
    if verify is False:
        raise ConfigurationError(
            "certificates are always verified",
            hint="Name the certificate's authority: verify=FILE, or LATTICE_CA_FILE",
        )
    settings = config.load(
        server=server,
        token=token,
        workspace=workspace,
        backend=backend,
        isolation=isolation,
        state_dir=state_dir,
        ca_file=None if verify is True else verify,
        rotate_keys=rotate_keys,
        timeout=timeout,
    )
    return Terms(
        server=check_server(config.needed_server(settings)),
        token=settings.secret(),
        request=reading(EnrollRequest, request | {"workspace_id": settings.workspace}),
        service=service,
        backend=settings.backend,
        # A connector serves others, and starts no programs.
        isolation=(None if service else settings.isolation) or USUAL,
        state_dir=settings.state_dir,
        ca_file=settings.ca_file,
        rotate_keys=settings.rotate_keys,
        timeout=settings.timeout,
        secret_files=tuple(
            str(path)
            for path in (settings.token_file, settings.state_dir, config.config_path())
            if path is not None
        ),
    )


def reading(kind: type[M], fields: dict[str, Any]) -> M:
    """A request's body.

    Raises:
        InvalidRequest: a field has a wrong form; nothing was sent.
    """
    ttl = fields.get("ttl")
    try:
        request = kind.model_validate(fields)
        granted: timedelta | None = getattr(request, "ttl", None)
        if ttl is not None and granted is not None and format_duration(granted) == "0s":
            raise InvalidRequest(
                "ttl: a life of 0 s is none", code="invalid_ttl", hint="Write 90s, 15m or 1h"
            )
    except ValidationError as error:
        items = error.errors(include_input=False, include_context=False, include_url=False)
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in items
        )
        code = "invalid_ttl" if any(item["loc"][:1] == ("ttl",) for item in items) else None
        raise InvalidRequest(wrong, code=code, hint="Nothing was sent") from None
    except ValueError as error:
        raise InvalidRequest(
            f"ttl: {error}",
            code="invalid_ttl",
            hint='Give a duration like "90s" or "1h", or a timedelta',
        ) from None
    return request
