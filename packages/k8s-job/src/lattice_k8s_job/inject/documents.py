"""YAML in, YAML out: what is not changed stays as it was written, byte for byte."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from lattice_k8s_job.inject import tree
from lattice_k8s_job.inject.edits import Editor
from lattice_k8s_job.inject.options import Options, wanted
from lattice_k8s_job.inject.podspec import put
from lattice_k8s_job.inject.workloads import workloads
from lattice_sdk.errors import ConfigurationError

_SEPARATOR = re.compile(r"(?m)^(?:---[ \t]*(?:#.*)?|\.\.\.[ \t]*(?:#.*)?)\r?$\n?")
_NOTHING = re.compile(r"(?:[ \t]*(?:#.*|%.*)?(?:\r?\n|$))*")


@dataclass
class Result:
    """What injection made.

    Attributes:
        text: the manifests.
        injected: ``KIND NAME`` of those that were given an identity.
        changed: whether ``text`` is not what came in.
    """

    text: str
    injected: list[str] = field(default_factory=list)
    changed: bool = False


def inject(text: str, options: Options) -> Result:
    """Give each pod of the manifests an identity.

    Args:
        text: YAML, of any number of documents.
        options: how.

    Raises:
        ConfigurationError: it is not YAML, or a pod cannot be injected; nothing was changed then.
    """
    result, parts = Result(""), []
    for number, part in enumerate(_parts(text)):
        if number % 2 or _NOTHING.fullmatch(part):
            parts.append(part)
            continue
        line = text.count("\n", 0, sum(map(len, parts)))
        if "\r\n" in part:
            plain = _document(part.replace("\r\n", "\n"), line, options, result)
            parts.append(plain.replace("\n", "\r\n"))
        else:
            parts.append(_document(part, line, options, result))
    result.text = "".join(parts)
    result.changed = result.text != text
    return result


def _parts(text: str) -> Iterator[str]:
    """Documents, and between them the lines that part them."""
    position = 0
    for found in _SEPARATOR.finditer(text):
        yield text[position : found.start()]
        yield found.group()
        position = found.end()
    yield text[position:]


def _document(part: str, line: int, options: Options, result: Result) -> str:
    # The editor works on whole lines.
    text = part if part.endswith("\n") else part + "\n"
    try:
        where, before = tree.read(text), tree.load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        at = line + (mark.line if mark else 0) + 1
        raise ConfigurationError(
            f"line {at}: this is not YAML: {problem}",
            hint="A template is rendered first: helm template … | lattice k8s inject -",
        ) from None
    after = copy.deepcopy(before)
    try:
        for workload in workloads(after):
            if wanted(workload.annotations):
                put(workload, options.with_annotations(workload.annotations))
                result.injected.append(f"{workload.kind} {workload.name}")
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"line {line + 1}: this is not a manifest as Kubernetes has them ({error})",
            hint="`kubectl apply --dry-run=server` says where",
        ) from None
    if where is None or before == after:
        return part
    made = _edited(text, where, before, after)
    if made is None:
        raise ConfigurationError(
            f"line {line + 1}: what is to be changed is shared by anchors with what is not, or "
            "written in a way that cannot be edited",
            hint="Write it out, or give JSON: kubectl create --dry-run=client -o json -f …",
        )
    return made if part.endswith("\n") else made.removesuffix("\n")


def _edited(text: str, where: tree.Node, before: object, after: object) -> str | None:
    """The text with ``after`` as its data; ``None`` where that would not be so."""
    editor = Editor(text, _offset(text))
    try:
        editor.change(where, before, after)
        made = editor.result()
        return made if tree.load(made) == after else None
    except (yaml.YAMLError, ValueError, TypeError):
        return None


def _offset(text: str) -> int:
    """By how much the text indents sequences below their key."""
    found = re.search(
        r"(?m)^((?: |- )*)[\w.\"'-]+:[ \t]*(?:#.*)?\n(?:[ \t]*(?:#.*)?\n)*( *)- ", text
    )
    return max(0, len(found[2]) - len(found[1])) if found else 0
