"""``lattice exec``: any program as an agent, in its own network.

In two stages, for a program shall start within a blink: what it needs to start is done with little
loaded, and the SDK, which keeps the identity alive, takes over once the program runs. What is out
of the ordinary is done by the SDK from the beginning.
"""
