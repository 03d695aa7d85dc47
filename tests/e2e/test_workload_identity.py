"""A workload with nothing but its platform's JWT enrolls through the real parts, and works."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import World
from support.issuer import AUDIENCE, Issuer

PROGRAM = textwrap.dedent(
    """
    from lattice_sdk import LatticeAgent, LatticeError
    try:
        with LatticeAgent(agent_name="code-executor", ttl="1m") as agent:
            with agent.http_client() as http:
                print(http.get("http://github-tools.lattice/").json()["client"], agent.overlay_ip)
    except LatticeError as error:
        print(error.code, error)
    """
)


def test_projected_token_is_all_that_a_job_needs(world: World, tmp_path: Path) -> None:
    file = tmp_path / "token"

    def lattice(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "lattice_sdk", *words],
            env={"LATTICE_SERVER": world.fabric.url, "LATTICE_TOKEN": world.fabric.admin_token},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def work(token: str) -> list[str]:
        file.write_text(token + "\n")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={
                "PATH": os.environ["PATH"],
                "LATTICE_SERVER": world.fabric.url,
                "LATTICE_TOKEN_FILE": str(file),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert token not in done.stdout + done.stderr
        return done.stdout.split()

    with Issuer() as issuer:
        limits = ("--preset", "sandboxed", "--max-ttl", "5m", "--max-age", "1h")
        claim = ("--claim", "kubernetes.io/namespace=agents", "--audience", AUDIENCE)
        where = ("--workspace", world.fabric.workspace)
        trust = lattice("trusts", "add", issuer.url, *claim, *limits, *where).split()
        trust_id = trust[trust.index("id") + 1]
        seen, own = work(issuer.token())
        assert seen == own
        code, *why = work(issuer.token(**{"kubernetes.io": {"namespace": "payroll"}}))
        assert code == "invalid_token"
        assert "kubernetes.io/namespace" in " ".join(why)
        assert trust_id in lattice("trusts", "list")
        lattice("trusts", "revoke", trust_id)
        assert work(issuer.token())[0] == "invalid_token"
