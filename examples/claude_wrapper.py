"""A Claude agent that reaches its model, its tools, and nothing else.

In one terminal:

    lattice dev

and in others, with what it prints and with the admin token, the model and a tool:

    lattice connect claude-api --listen 443 --to api.anthropic.com:443 --hostname api.anthropic.com
    lattice connect github-tools --listen 80 --to 127.0.0.1:9000

Then, with LATTICE_SERVER, LATTICE_TOKEN and ANTHROPIC_API_KEY set:

    python examples/claude_wrapper.py "Fetch http://github-tools.lattice/ and http://example.com/"

With ANTHROPIC_BASE_URL the model may be another service of the workspace.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    Message,
    ResultMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
    create_sdk_mcp_server,
    tool,
)

from lattice_claude import current_agent, lattice_claude_client

PROMPT = (
    "Fetch http://github-tools.lattice/ with the tool fetch, then http://example.com/ with curl."
)


@tool("fetch", "Fetch a URL.", {"url": str})
async def fetch(arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool in this process: its agent is the conversation's."""
    async with current_agent().async_http_client() as http:
        answer = await http.get(arguments["url"])
    return {"content": [{"type": "text", "text": answer.text}]}


def show(message: Message) -> None:
    """Print what is said, called and answered."""
    if isinstance(message, AssistantMessage):
        for block in message.content:
            if isinstance(block, TextBlock):
                print(f"claude: {block.text}")
            elif isinstance(block, ToolUseBlock):
                print(f"  calls {block.name} {block.input}")
    elif isinstance(message, UserMessage) and isinstance(message.content, list):
        for block in message.content:
            if isinstance(block, ToolResultBlock):
                print(f"  answer: {block.content}")
    elif isinstance(message, ResultMessage):
        print(f"{message.subtype} after {message.num_turns} turns")


async def main(prompt: str) -> None:
    """Talk once, under an identity that begins and ends here."""
    options = ClaudeAgentOptions(
        mcp_servers={"tools": create_sdk_mcp_server("tools", tools=[fetch])},
        allowed_tools=["mcp__tools__fetch", "Bash(curl:*)"],
        setting_sources=[],
    )
    settings = {"agent_name": "claude-wrapper", "policy_preset": "sandboxed", "ttl": "10m"}
    async with lattice_claude_client(options, **settings) as client:
        agent = client.lattice_agent
        print(f"{agent.peer_id} at {agent.overlay_ip}")
        await client.query(prompt)
        async for message in client.receive_response():
            show(message)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or PROMPT))
