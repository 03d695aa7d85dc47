"""``lattice k8s inject``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lattice_k8s_job import layout
from lattice_k8s_job.inject.options import IMAGE, TOKEN_SECRET
from lattice_k8s_job.layout import Mode, Sidecar


def inject(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Manifests; - is standard input.")
    ] = "-",
    server: Annotated[
        str,
        typer.Option(metavar="URL", envvar="LATTICE_SERVER", help="The control plane, for pods."),
    ] = "",
    mode: Annotated[
        Mode,
        typer.Option(
            help="proxy: no capability anywhere, the environment names the proxy. interface: the "
            "tunnel is all the network that the pod has; the two containers get NET_ADMIN."
        ),
    ] = Mode.PROXY,
    sidecar: Annotated[
        Sidecar,
        typer.Option(help="native: Kubernetes 1.29 and newer. container: before it."),
    ] = Sidecar.NATIVE,
    token_secret: Annotated[
        str,
        typer.Option(metavar="NAME[:KEY]", help="Secret with the workspace token; KEY is token."),
    ] = TOKEN_SECRET,
    token_audience: Annotated[
        str | None,
        typer.Option(
            metavar="AUDIENCE",
            help="Enroll with a service-account token for this audience, instead of a Secret.",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(metavar="PRESET", help="sandboxed, coordinator or isolated.")
    ] = "sandboxed",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT[/udp]",
            help="A destination of the preset isolated; may be repeated.",
        ),
    ] = None,
    ttl: Annotated[
        str, typer.Option(metavar="1h", help="Life from one renewal to the next.")
    ] = "1h",
    workspace: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Workspace; the token's when left out."),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:KEY]",
            help="ConfigMap with the control plane's certificate authorities; KEY is ca.crt.",
        ),
    ] = None,
    container: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this container has the network; may be repeated."),
    ] = None,
    no_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Reached past the proxy; may be repeated."),
    ] = None,
    allow_network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="In mode interface: reached beside the tunnel, and may reach the pod; may be "
            "repeated.",
        ),
    ] = None,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Of the two containers.")] = IMAGE,
    proxy_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the proxy on the pod's loopback.")
    ] = layout.PROXY_PORT,
    health_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the sidecar's probes.")
    ] = layout.HEALTH_PORT,
    in_place: Annotated[
        bool, typer.Option("--in-place", "-i", help="Write the file instead of printing.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print nothing; exit status 1 if it would change.")
    ] = False,
) -> None:
    r"""Give the pods of manifests a network identity: Job, CronJob, Pod, Deployment, StatefulSet.

    Images and code stay as they are. Everything else in the file, comments
    and order included, stays as well; what is injected already is brought up
    to date. A manifest annotated lattice.io/inject: "false" is left alone;
    lattice.io/preset, lattice.io/ttl and lattice.io/allow win over the options.

    For example:

      lattice k8s inject job.yaml --server https://lattice.example.com \
        | kubectl apply -f -
    """
    from lattice_k8s_job.inject import Options
    from lattice_k8s_job.inject import inject as inject_text
    from lattice_sdk.client import check_server

    if not server:
        raise typer.BadParameter("name the control plane: --server or LATTICE_SERVER")
    if in_place and file == "-":
        raise typer.BadParameter("--in-place needs a file")
    options = Options(
        server=check_server(server),
        image=image,
        token_secret=token_secret,
        token_audience=token_audience,
        mode=mode,
        sidecar=sidecar,
        workspace=workspace,
        preset=preset,
        allow=tuple(allow or ()),
        ttl=ttl,
        ca=ca,
        containers=tuple(container or ()),
        no_proxy=tuple(no_proxy or ()),
        allow_networks=tuple(allow_network or ()),
        proxy_port=proxy_port,
        health_port=health_port,
    )
    result = inject_text(_read(file), options)
    if not result.injected:
        typer.echo(f"{file}: there is nothing in it that makes pods", err=True)
    if check:
        if result.changed:
            typer.echo(f"{file}: not up to date: {', '.join(result.injected)}", err=True)
            raise typer.Exit(1)
        return
    if in_place:
        if result.changed:
            _write(Path(file), result.text)
        return
    sys.stdout.buffer.write(result.text.encode())
    sys.stdout.flush()


def _read(file: str) -> str:
    """The text with its line ends as they are.

    Raises:
        ConfigurationError: it cannot be read.
    """
    from lattice_sdk.errors import ConfigurationError

    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{file} cannot be read: {why}", hint="Name another") from None


def _write(path: Path, text: str) -> None:
    """Replace the file's content, whole or not at all.

    Raises:
        ConfigurationError: it cannot be written.
    """
    import os
    import shutil
    import tempfile

    from lattice_sdk.errors import ConfigurationError

    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        with open(descriptor, "wb") as file:
            file.write(text.encode())
        shutil.copymode(target, name)
        os.replace(name, target)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}", hint="Print it instead, without -i"
        ) from None
