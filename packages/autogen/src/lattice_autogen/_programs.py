"""Programs that an agent's code executor starts have the agent's network, and no host's secrets."""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lattice_sdk import ConfigurationError, LatticeAgent

__all__ = ["command", "confined", "no_network", "rebound"]

CallableT = TypeVar("CallableT", bound=Callable[..., Any])

# Settings and credentials of the host's, by their usual names, and the ways to its network.
_WITHHELD = re.compile(
    r"LATTICE_|.*_PROXY$|SSH_AUTH_SOCK$|.*PASSW(OR)?D"
    r"|(.*_)?(TOKEN|SECRET|CREDENTIAL|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY)S?(_|$)",
    re.IGNORECASE,
).match


def command(
    agent: LatticeAgent,
    argv: Sequence[str],
    environment: Mapping[str, str],
    given: Mapping[str, str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """How a program of the agent's is started.

    Args:
        agent: whose it is.
        argv: the program and its arguments.
        environment: that it would have; what is the host's alone is left out.
        given: variables that it is to have, whatever their names.

    Returns:
        Command line and environment.

    Raises:
        IdentityClosed: the agent is not open.
        IdentityExpired: its life is over.
    """
    kept = {name: value for name, value in environment.items() if not _WITHHELD(name)}
    kept |= given or {}
    if agent.isolation == "namespace":
        return agent.wrap(argv), kept
    return list(argv), kept | agent.proxy_env()


def rebound(function: CallableT, **names: Any) -> CallableT:
    """A copy of a function or bound method that finds ``names`` instead of its module's.

    AutoGen's executors start programs in the middle of long methods, which have no seam.

    Raises:
        ConfigurationError: the function does not use such a name itself; what it starts programs
            with would then go unseen.
    """
    plain: Any = getattr(function, "__func__", function)
    for name in names:
        if name not in plain.__code__.co_names:
            raise ConfigurationError(
                f"{plain.__module__}.{plain.__qualname__} of the installed AutoGen does not use "
                f"{name}, so its programs cannot be given the agent's network",
                hint="Install a version that lattice-autogen supports (its extras), or report this",
            )
    twin = types.FunctionType(
        plain.__code__,
        {**plain.__globals__, **names},
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    twin.__kwdefaults__ = plain.__kwdefaults__
    owner = getattr(function, "__self__", None)
    bound: Any = twin if owner is None else types.MethodType(twin, owner)
    found: CallableT = bound
    return found


def confined(executor: Any, plain: type[Any], ours: type[Any]) -> Any:
    """The executor for an agent with an identity.

    Args:
        executor: that the agent was given, which stays as it is.
        plain: AutoGen's class whose executors can be made ``ours``.
        ours: its subclass whose programs have the agent's network.

    Raises:
        ConfigurationError: it is another that does not say that it sees to this itself.
    """
    if type(executor) is plain:
        twin = copy.copy(executor)
        twin.__class__ = ours
        return twin
    if getattr(executor, "lattice_network", False):
        return executor
    raise no_network(type(executor).__name__)


def no_network(executor: str) -> ConfigurationError:
    """The error for an executor whose programs cannot be given the agent's network."""
    return ConfigurationError(
        f"the code that {executor} runs would not have the agent's network",
        hint="Use LatticeCommandLineCodeExecutor. If the code has no network at all, or the "
        "agent's by other means, say so: `executor.lattice_network = True`",
    )
