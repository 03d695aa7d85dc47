"""YAML in, YAML out: what is not changed stays as it was written, byte for byte."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lattice_k8s_job.inject.options import Options, wanted
from lattice_k8s_job.inject.podspec import put
from lattice_k8s_job.inject.workloads import workloads
from lattice_sdk.errors import ConfigurationError

_SEPARATOR = re.compile(r"(?m)^(?:---[ \t]*(?:#.*)?|\.\.\.[ \t]*(?:#.*)?)\r?$\n?")
_NOTHING = re.compile(r"(?:[ \t]*(?:#.*|%.*)?(?:\r?\n|$))*")
_WIDTH = 1 << 20  # nothing is folded


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
    yaml = _yaml(part)
    try:
        document = yaml.load(part)
    except (YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        at = line + (mark.line if mark else 0) + 1
        raise ConfigurationError(
            f"line {at}: this is not YAML: {problem}",
            hint="A template is rendered first: helm template … | lattice k8s inject -",
        ) from None
    try:
        found = [one for one in workloads(document) if wanted(one.annotations)]
        before = yaml_text(yaml, document) if found else ""
        for workload in found:
            put(workload, options.with_annotations(workload.annotations))
            result.injected.append(f"{workload.kind} {workload.name}")
    except (AttributeError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"line {line + 1}: this is not a manifest as Kubernetes has them ({error})",
            hint="`kubectl apply --dry-run=server` says where",
        ) from None
    if not found:
        return part
    after = yaml_text(yaml, document)
    if after == before:
        return part
    return after if part.endswith("\n") else after.rstrip("\n")


def _yaml(text: str) -> YAML:
    yaml = YAML()
    yaml.width = _WIDTH
    yaml.preserve_quotes = True
    yaml.explicit_start = text.startswith("---")
    mapping, offset = _style(text)
    yaml.indent(mapping=mapping, sequence=offset + 2, offset=offset)
    return yaml


def yaml_text(yaml: YAML, document: object) -> str:
    """The document as it would be written."""
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _style(text: str) -> tuple[int, int]:
    """How the text indents: mappings, and sequences within them."""
    mapping = re.search(r"(?m)^[\w.\"'-]+:[ \t]*(?:#.*)?\n(?:[ \t]*(?:#.*)?\n)*( +)[^\s#-]", text)
    sequence = re.search(
        r"(?m)^( *)(?:- )*[\w.\"'-]+:[ \t]*(?:#.*)?\r?\n(?:[ \t]*(?:#.*)?\r?\n)*( *)- ", text
    )
    step = len(mapping[1]) if mapping else 2
    offset = 0
    if sequence:
        dashes = len(re.match(r"(?: *(?:- )*)", sequence[0])[0])  # type: ignore[index]
        offset = max(0, len(sequence[2]) - dashes)
    return step, offset
