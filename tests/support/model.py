"""A model behind ``POST /v1/messages`` whose turns the test writes, for the real claude command."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Block = dict[str, Any]
Turn = Sequence[Block] | Callable[[list[dict[str, Any]]], Sequence[Block]]


def say(text: str) -> Block:
    """The model says something."""
    return {"type": "text", "text": text}


def call(tool: str, **arguments: Any) -> Block:
    """The model calls a tool."""
    return {"type": "tool_use", "name": tool, "input": arguments}


def results(messages: list[dict[str, Any]]) -> list[str]:
    """What the tools of a conversation answered, as the model is told."""
    found = []
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else []
        for block in blocks:
            if block.get("type") != "tool_result":
                continue
            content = block.get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            found.append(content)
    return found


def echo(messages: list[dict[str, Any]]) -> list[Block]:
    """A turn that says what the last tool answered."""
    return [say(results(messages)[-1])]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedModel

    def do_GET(self) -> None:
        # Settings of an organization, for which the command asks where it thinks the host real.
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.server.requests.append(request)
        messages = request["messages"]
        done = sum(message["role"] == "assistant" for message in messages)
        script = self.server.script
        turn = script[done] if done < len(script) else [say("There is no more in the script.")]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):  # the reader has gone, as after an interrupt
            for event in self.events(request["model"], turn, messages):
                line = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
                self.wfile.write(line.encode())

    def events(self, model: str, turn: Turn, messages: list[Any]) -> Iterator[dict[str, Any]]:
        """An answer as https://docs.claude.com/en/api/messages-streaming tells."""
        number = next(self.server.numbers)
        yield {
            "type": "message_start",
            "message": {
                "id": f"msg_{number}",
                "type": "message",
                "role": "assistant",
                "model": model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        }
        blocks = turn(messages) if callable(turn) else turn
        for index, block in enumerate(blocks):
            if block["type"] == "text":
                start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
            else:
                start = {**block, "id": f"toolu_{number}_{index}", "input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield {"type": "content_block_start", "index": index, "content_block": start}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        reason = "tool_use" if any(one["type"] == "tool_use" for one in blocks) else "end_turn"
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 1},
        }
        yield {"type": "message_stop"}

    def log_message(self, *_: Any) -> None:
        return


class ScriptedModel(ThreadingHTTPServer):
    """Serves on a free port of loopback.

    It keeps nothing of a conversation: the turn is the one after those that the request has.

    Attributes:
        script: the model's turns; a function makes one from the conversation so far.
        requests: the bodies that came.
        target: ``HOST:PORT`` for a connector to forward to.
        url: for a claude command that needs no tunnel.

    Args:
        script: the first one.
        tls: to speak TLS with.
    """

    daemon_threads = True

    def __init__(self, *script: Turn, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.script: Sequence[Turn] = script
        self.requests: list[dict[str, Any]] = []
        self.numbers = itertools.count()
        self.target = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.target}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ScriptedModel:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(5)


def claude_environment(home: Path, url: str, **more: str) -> Mapping[str, str]:
    """What makes the claude command run against a model at ``url``, and nothing else of it."""
    return {
        "HOME": str(home),
        "CLAUDE_CODE_TMPDIR": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "sk-ant-dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # Tests end the network under it; it would try for minutes.
        "CLAUDE_CODE_MAX_RETRIES": "0",
        # As root it refuses to skip permissions otherwise.
        **({"IS_SANDBOX": "1"} if os.getuid() == 0 else {}),
        **more,
    }
