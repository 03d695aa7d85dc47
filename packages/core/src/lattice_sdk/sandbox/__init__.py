"""The sandbox: a program in an agent's network namespace, with no other network.

Two halves. The launcher (``enter.py`` and what it imports) is a process of its own that must start
fast: standard library only, and of that next to nothing. The other half runs in the agent's process
and prepares what the launcher reads.
"""
