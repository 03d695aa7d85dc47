"""Lists of the API, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_sdk.cli.session import Session

PAGE = 1000  # what the control plane gives at most


def every(session: Session, kind: str, **query: Any) -> list[Mapping[str, Any]]:
    """The items of all pages of ``/api/v1/KIND``."""

    async def collect(api: Any) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        cursor = None
        while True:
            params = {**query, "limit": PAGE, "cursor": cursor}
            page = await api.request("GET", f"/api/v1/{kind}", params=params)
            rows += page["items"]
            cursor = page.get("next")
            if cursor is None:
                return rows

    return session.run(collect)
