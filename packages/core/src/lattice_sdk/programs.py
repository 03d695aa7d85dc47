"""An agent's programs: started as by :mod:`subprocess` and :mod:`asyncio`, in its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    import subprocess

    from lattice_sdk.backends import Isolation
    from lattice_sdk.lifecycle import Lifecycle
    from lattice_sdk.sandbox.start import Command, StrOrBytesPath


class Programs:
    """What an agent can do with programs.

    With :attr:`isolation` ``"namespace"`` a program has no other network than the agent's: one
    interface, which is the tunnel, a loopback of its own, and the names of the enrollment. It has
    the files, the user and the terminal that it would have anyway, and no rights beyond. With
    ``"proxy"`` it is told of the agent's proxy by its environment, and may go around it.

    All take ``unix_sockets=True`` for programs that cannot do without sockets of the Unix family,
    which reach what listens in the file system: Python's ``multiprocessing``, say.
    """

    _life: Lifecycle

    @property
    def isolation(self) -> Isolation:
        """What bounds the network of programs.

        ``namespace``: a network namespace of the agent's own, with nothing in it but the tunnel.
        ``interface``: they share this process's network, of which the tunnel is a part.
        ``proxy``: nothing; they are told of the tunnel's proxy.
        ``none``: they are given no network of the agent's, or it is not open yet.
        """
        return self._life.isolation

    def wrap(
        self,
        argv: Sequence[StrOrBytesPath],
        *,
        cwd: StrOrBytesPath | None = None,
        unix_sockets: bool = False,
    ) -> list[str]:
        """A command line that runs ``argv`` with the agent's network, for others to execute.

        It holds no secret. It is good while the agent is open and its tunnel is not rebuilt (the
        engine has been killed, say); then, and where the sandbox cannot be made, it ends with
        status 125 and a sentence on standard error. Its status is else the program's, 127 where
        there is no such program and 126 where that cannot be executed.

        Args:
            argv: program and arguments.
            cwd: where it begins; where whoever executes it is when left out.
            unix_sockets: whether it may make sockets of the Unix family.

        Raises:
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.
            BackendUnavailable: its backend runs no programs.
        """
        from lattice_sdk.sandbox.start import wrapped

        return wrapped(self._life, argv, directory=cwd, unix_sockets=unix_sockets)

    def popen(
        self, args: Command, *, unix_sockets: bool = False, **settings: Any
    ) -> subprocess.Popen[Any]:
        """Start a program with the agent's network; it ends with the agent at the latest.

        Args:
            args: as for :class:`subprocess.Popen`.
            unix_sockets: whether it may make sockets of the Unix family.
            settings: of :class:`subprocess.Popen`, all but another user and ``close_fds=False``.

        Raises:
            OSError: there is no such program, or it cannot be executed, as with ``Popen``.
            BackendUnavailable: this machine does not let the sandbox be made.
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.
        """
        from lattice_sdk.sandbox.start import Program

        return Program(self._life, args, self, unix_sockets=unix_sockets, **settings)

    def run(
        self, args: Command, *, unix_sockets: bool = False, **settings: Any
    ) -> subprocess.CompletedProcess[Any]:
        """:func:`subprocess.run` with the agent's network; see :meth:`popen`.

        Args:
            args: as for :func:`subprocess.run`.
            unix_sockets: whether it may make sockets of the Unix family.
            settings: of :func:`subprocess.run`: ``input``, ``timeout``, ``check`` and so on.
        """
        from lattice_sdk.sandbox import start

        return start.run(self._life, args, self, unix_sockets=unix_sockets, **settings)

    async def create_subprocess_exec(
        self,
        program: StrOrBytesPath,
        *args: StrOrBytesPath,
        unix_sockets: bool = False,
        **settings: Any,
    ) -> asyncio.subprocess.Process:
        """:func:`asyncio.create_subprocess_exec` with the agent's network; see :meth:`popen`."""
        from lattice_sdk.sandbox import start

        return await start.create_subprocess_exec(
            self._life, program, args, self, unix_sockets=unix_sockets, **settings
        )
