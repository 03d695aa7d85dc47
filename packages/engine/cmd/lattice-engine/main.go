// Command lattice-engine is the data plane of Lattice.
package main

import (
	"fmt"
	"os"

	"lattice.dev/engine/internal/gateway"
	"lattice.dev/engine/internal/keeper"
	"lattice.dev/engine/internal/lock"
	"lattice.dev/engine/internal/netstack"
)

// version is set by the build from the package's version.
var version = "0.1.0"

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "netstack":
			os.Exit(netstack.Main(os.Args[2:], version))
		case "gateway":
			os.Exit(gateway.Main(os.Args[2:], version))
		case lock.Mode:
			os.Exit(lock.Main(os.Args[2:]))
		case keeper.Mode: // for the engine's own use
			os.Exit(keeper.Main())
		case "version", "--version":
			fmt.Println(version)
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: lattice-engine netstack|gateway|lock|version [--help]")
	os.Exit(2)
}
