"""``lattice demo``: the whole story on this machine, with the real parts and without root."""
