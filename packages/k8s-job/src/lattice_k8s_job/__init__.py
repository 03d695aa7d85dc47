"""Network identity for Kubernetes Jobs: init container, sidecar, injection."""
