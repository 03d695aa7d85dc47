"""Schemathesis: what fits the schema, or nearly, is answered as the schema says, never by 5xx."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tenants import Api, two_tenants

SCHEMATHESIS = Path(__file__).parents[2] / ".venvs" / "schemathesis" / "bin" / "schemathesis"
CHECKS = [
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "ignored_auth", "unsupported_method"),
]
# Of each route, by the token that it takes.
ROUTES = {
    "workspace": "^/api/v1/agent-enroll$",
    "enrollment": "/(renew|delegate|names)$",
    "connector": "/(routes|refusals)$",
    # Not the event log, which goes on for ever when that is asked for; test_api_fuzz.py has it.
    "admin": "^(?!.*/(agent-enroll|renew|delegate|names|routes|refusals|events)$)",
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, str]]]:
    """A fabric of its own, as it is managed by chance, and a token for each group of routes."""
    directory = tmp_path_factory.mktemp("schema")
    with two_tenants(directory, auth_failures_per_minute=0) as (api, ours, _):
        yield api, {"admin": api.fabric.admin_token} | ours.bearers()


@pytest.mark.timeout(420)  # more than the command has
@pytest.mark.parametrize("kind", ROUTES)
def test_answers_are_as_the_schema_says(
    attacked: tuple[Api, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    api, bearers = attacked
    assert SCHEMATHESIS.exists(), "`make environments` makes it"
    done = subprocess.run(
        [
            *(str(SCHEMATHESIS), "run", f"{api.fabric.url}/openapi.json"),
            *("--include-path-regex", ROUTES[kind], "--checks", ",".join(CHECKS)),
            *("--header", f"Authorization: Bearer {bearers[kind]}"),
            *("--phases", "coverage,fuzzing", "--max-examples", "15", "--seed", "1"),
            *("--generation-deterministic", "--no-color", "--warnings", "off"),
            *("--request-timeout", "30", "--continue-on-failure"),
        ],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
