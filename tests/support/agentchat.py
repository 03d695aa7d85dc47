"""What tests of autogen-agentchat share: models that replay, and what a run said."""

from __future__ import annotations

import json
from typing import Any

from autogen_agentchat.base import TaskResult
from autogen_core import FunctionCall
from autogen_core.models import CreateResult, RequestUsage
from autogen_ext.models.replay import ReplayChatCompletionClient


def said(result: TaskResult) -> list[str]:
    return [message.to_text() for message in result.messages if message.source != "user"]


def calls(name: str, **arguments: Any) -> CreateResult:
    call = FunctionCall(id="1", name=name, arguments=json.dumps(arguments))
    usage = RequestUsage(prompt_tokens=0, completion_tokens=0)
    return CreateResult(finish_reason="function_calls", content=[call], usage=usage, cached=False)


MODEL_INFO: Any = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "family": "unknown",
    "structured_output": False,
}


def model(*answers: Any) -> ReplayChatCompletionClient:
    return ReplayChatCompletionClient(list(answers), model_info=MODEL_INFO)
