"""A bill of materials of an image's wheels, in SPDX 2.3 (https://spdx.github.io/spdx-spec/v2.3/).

Written from the wheels' own metadata, and from what the Go linker noted in the engine's binary. The
base image's packages are its maker's to list.
"""

from __future__ import annotations

import email
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

UNKNOWN = "NOASSERTION"
_EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*")
# Names of licences as older metadata and classifiers write them.
_LICENSES = {
    "MIT License": "MIT",
    "MIT": "MIT",
    "BSD License": UNKNOWN,  # which one it does not say
    "Apache Software License": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def write(wheels: Path, file: Path, name: str) -> None:
    """Describe all wheels of a directory."""
    packages: list[dict[str, Any]] = []
    relations = []
    for wheel in sorted(wheels.glob("*.whl")):
        one = _python(wheel)
        packages.append(one)
        relations.append(_relation("SPDXRef-DOCUMENT", "DESCRIBES", one))
        for module in _go(wheel):
            if module["SPDXID"] not in {known["SPDXID"] for known in packages}:
                packages.append(module)
            relations.append(_relation(one["SPDXID"], "CONTAINS", module))
    digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    created = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://lattice.dev/spdx/{name}-{digest}",
        "creationInfo": {
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: lattice-k8s-job/image/sbom.py"],
        },
        "packages": packages,
        "relationships": relations,
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def _python(wheel: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(entry))
    name, version = str(metadata["Name"]), str(metadata["Version"])
    package = _package(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{version}")
    package["licenseDeclared"] = _license(metadata)
    package["packageFileName"] = wheel.name
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package["checksums"] = [{"algorithm": "SHA256", "checksumValue": digest}]
    return package


def _license(metadata: Message) -> str:
    if expression := metadata["License-Expression"]:
        return str(expression)
    declared = str(metadata["License"] or "")
    found = [
        one.split(" :: ")[-1] for one in metadata.get_all("Classifier") or [] if "License" in one
    ]
    for text in (declared, *found):
        if text in _LICENSES:
            return _LICENSES[text]
    return declared if _EXPRESSION.fullmatch(declared) else UNKNOWN


def _go(wheel: Path) -> Iterator[dict[str, Any]]:
    go = os.environ.get("LATTICE_GO") or shutil.which("go")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as directory:
        for entry in archive.namelist():
            if not entry.endswith("/_bin/lattice-engine"):
                continue
            binary = archive.extract(entry, directory)
            if go is None:
                raise SystemExit("the engine's modules cannot be listed: LATTICE_GO names no Go")
            told = subprocess.run(
                [go, "version", "-m", binary], capture_output=True, text=True, check=True
            ).stdout
            yield _package("go", told.split()[1].removeprefix("go"), UNKNOWN)
            for module, version in re.findall(r"(?m)^\tdep\t(\S+)\t(\S+)", told):
                yield _package(module, version, f"pkg:golang/{module}@{version}")


def _package(name: str, version: str, purl: str) -> dict[str, Any]:
    package: dict[str, Any] = {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", f"{name}-{version}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
    }
    if purl != UNKNOWN:
        package["externalRefs"] = [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }
        ]
    return package


def _relation(one: str, kind: str, other: dict[str, Any]) -> dict[str, str]:
    return {
        "spdxElementId": one,
        "relationshipType": kind,
        "relatedSpdxElement": str(other["SPDXID"]),
    }
