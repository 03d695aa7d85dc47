"""Two AutoGen agents: one writes a program, the other runs it, each with a network of its own.

Without a model, so that it runs offline. In two other terminals:

    lattice dev                 # prints what to export, here too
    lattice connect github-tools --listen 80 --to 127.0.0.1:9000

Then, where ag2 before 1 is installed: python examples/autogen_pair.py
"""

from __future__ import annotations

import tempfile
from typing import Any

from autogen import ConversableAgent
from autogen.coding import LocalCommandLineCodeExecutor

from lattice_autogen import LatticeConversableAgent, current_agent

PROGRAM = """\
import json
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

for url in {urls!r}:
    try:
        print(url, "answers:", urlopen(url, timeout=20).read(200).decode())
    except HTTPError as error:  # by the proxy, where there is no namespace
        print(url, "is refused:", json.load(error)["detail"])
    except URLError as error:
        print(url, "is refused:", error.reason)
"""
# What every program on a cloud machine could ask for its credentials.
METADATA = "http://169.254.169.254/"


def write(
    recipient: ConversableAgent, messages: list[dict[str, Any]], **_: Any
) -> tuple[bool, str]:
    """Reply with a program that tries what is granted and what is not."""
    if "Code output:" in messages[-1]["content"]:
        return True, "Thank you."
    services = current_agent().services
    urls = [f"http://{service.hostnames[0]}/" for service in services if service.hostnames]
    return True, f"```python\n{PROGRAM.format(urls=[*urls, METADATA])}```"


def main() -> None:
    """Let them talk."""
    with (
        tempfile.TemporaryDirectory() as directory,
        LatticeConversableAgent(
            "writer", llm_config=False, human_input_mode="NEVER", policy_preset="sandboxed"
        ) as writer,
        LatticeConversableAgent(
            "runner",
            llm_config=False,
            human_input_mode="NEVER",
            code_execution_config={"executor": LocalCommandLineCodeExecutor(work_dir=directory)},
            policy_preset="sandboxed",
        ) as runner,
    ):
        for agent in (writer, runner):
            print(
                f"{agent.name} is {agent.lattice_agent.peer_id}, {agent.lattice_agent.overlay_ip}"
            )
        writer.register_reply([None, ConversableAgent], write)
        chat = runner.initiate_chat(
            writer, message="What can I reach?", max_turns=2, silent=True, clear_history=True
        )
        print(chat.chat_history[2]["content"])


if __name__ == "__main__":
    main()
