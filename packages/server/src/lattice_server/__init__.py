"""The Lattice control plane and gateway daemon."""
