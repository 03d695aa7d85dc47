"""Network identity for AutoGen agents."""
