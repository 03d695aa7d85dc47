"""Injection: anybody's manifests with an identity for each pod; images and code unchanged."""

from lattice_k8s_job.inject.documents import inject
from lattice_k8s_job.inject.options import Options

__all__ = ["Options", "inject"]
