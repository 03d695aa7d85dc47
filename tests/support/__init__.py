"""Helpers of the tests: tool services, namespaces of their own, waiting for conditions."""
