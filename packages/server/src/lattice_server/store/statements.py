"""The statements of enrollments, renewals and removals, prepared."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sqlalchemy import Table, bindparam, func, insert, literal_column, or_, select, update

from lattice_server.store import schema
from lattice_server.store.prepared import Prepared
from lattice_server.store.records import PEER_FIELDS, TOKEN_FIELDS

_peers, _tokens = schema.peers.c, schema.tokens.c
# In the text and not a parameter: a partial index is chosen by it.
_active = _peers.state == literal_column("'active'")
_peer_columns = [_peers[name] for name in PEER_FIELDS]
_peer = select(*_peer_columns)

PEER_BY_ID = Prepared(_peer.where(_peers.id == bindparam("id")))
PEER_BY_TOKEN = Prepared(_peer.where(_peers.token_hash == bindparam("hash")))
LIVE_PEER_BY_KEY = Prepared(_peer.where(_peers.public_key == bindparam("key"), _active))
LIVE_CHILDREN = Prepared(_peer.where(_peers.parent_id == bindparam("parent"), _active))
# Those included whose deadline has passed and of which nobody has said that they are gone.
COUNT_ACTIVE_PEERS = Prepared(select(func.count()).where(_active))
LIVE_PEERS = Prepared(_peer.where(_active, _peers.expires_at > bindparam("now")))
# Followed by both hashes, which are compared by the program.
TOKEN_BY_HASH = Prepared(
    select(*(_tokens[name] for name in TOKEN_FIELDS), _tokens.hash, _tokens.previous_hash).where(
        or_(
            _tokens.hash == bindparam("hash"),
            (_tokens.previous_hash == bindparam("hash"))
            & (_tokens.previous_until > bindparam("now")),
        ),
        _tokens.kind == bindparam("kind"),
    )
)
COUNT_USE = Prepared(
    update(schema.tokens)
    .where(
        _tokens.id == bindparam("token"),
        _tokens.revoked_at.is_(None),
        _tokens.expires_at.is_(None) | (_tokens.expires_at > bindparam("now")),
        _tokens.uses.is_(None) | (_tokens.used < _tokens.uses),
    )
    .values(used=_tokens.used + 1)
)


def _insert(table: Table, columns: Iterable[str]) -> Prepared:
    return Prepared(insert(table).values({name: bindparam(name) for name in columns}).inline())


INSERT_PEER = _insert(schema.peers, PEER_FIELDS)
INSERT_ADDRESS = _insert(schema.addresses, ("address", "owner", "free_at", "workspace_id"))
INSERT_EVENT = _insert(schema.events, ("type", "at", "workspace_id", "peer_id", "name", "data"))
END_PEER = Prepared(
    update(schema.peers)
    .where(_peers.id == bindparam("peer"))
    .values(state=bindparam("state"), ended_at=bindparam("ended_at"), version=_peers.version + 1)
)
FREE_ADDRESS = Prepared(
    update(schema.addresses)
    .where(schema.addresses.c.address == bindparam("of"))
    .values(free_at=bindparam("at"))
)


@cache
def update_peer(columns: tuple[str, ...]) -> Prepared:
    """Set these columns of a peer; its id is the parameter ``peer``.

    Columns that keep their values are better left out: those of an index would be written anew.
    """
    return Prepared(
        update(schema.peers)
        .where(_peers.id == bindparam("peer"))
        .values({name: bindparam(name) for name in columns})
    )
