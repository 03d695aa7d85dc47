"""The Lattice data plane: one small Go program over wireguard-go and gVisor netstack."""
