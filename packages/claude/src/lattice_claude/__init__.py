"""Network identity for the Claude Agent SDK and the claude command."""
