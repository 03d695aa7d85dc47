"""Programs that agents run in tests."""

from __future__ import annotations

# Prints as JSON: whom the granted service sees, what became of a request to an ungranted one, and
# the environment. urllib takes the proxies of the environment.
REACH = """
import json, os, urllib.request
from urllib.error import HTTPError
answer = json.load(urllib.request.urlopen("http://github-tools.lattice/", timeout=20))
try:
    urllib.request.urlopen("http://{denied}/", timeout=20)
    denied = "reached"
except HTTPError as error:
    denied = error.code
print(json.dumps([answer["client"], denied, dict(os.environ)]))
"""


def key() -> str:
    """A function whose source executors copy to where programs import it."""
    import os

    return os.environ.get("OPENAI_API_KEY", "none")
