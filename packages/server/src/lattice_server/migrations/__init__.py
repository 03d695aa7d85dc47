"""Alembic migrations of the control plane's database, applied on start."""
