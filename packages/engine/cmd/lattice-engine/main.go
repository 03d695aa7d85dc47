// Command lattice-engine is the data plane of Lattice.
package main

import (
	"fmt"
	"os"
)

// version is set by the build from the package's version.
var version = "0.1.0"

func main() {
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Println(version)
		return
	}
	fmt.Fprintln(os.Stderr, "usage: lattice-engine version")
	os.Exit(2)
}
