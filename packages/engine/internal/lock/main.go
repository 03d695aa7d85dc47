// Package lock is the engine's mode that bounds a pod's network: nothing but the tunnel's interface, loopback, the
// kubelet's probes and what is named passes, for every process but those of one group. It writes nftables rules into
// the network namespace that it is started in, and ends; the rules stay as long as the namespace.
package lock

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/userns"
)

// Mode is the word that the engine is started with.
const Mode = "lock"

// settings say what passes.
type settings struct {
	iface      string
	group      uint32
	probesFrom []netip.Prefix
	probePorts []uint16
	allowed    []netip.Prefix
}

// Main runs the mode with the arguments after its name and returns the exit code.
func Main(args []string) int {
	read, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		control.FailStart("invalid_arguments", err)
		return 1
	}
	if !userns.Has(unix.CAP_NET_ADMIN) {
		control.FailStart("net_admin_missing", errors.New("locking a network needs CAP_NET_ADMIN in it: add NET_ADMIN to the container's capabilities"))
		return 1
	}
	if err := write(read); err != nil {
		control.FailStart("nftables_failed", fmt.Errorf("the rules cannot be written (%w): the kernel needs nf_tables with inet, ct and reject (modules nf_tables, nft_ct, nft_reject_inet)", err))
		return 1
	}
	return 0
}

func parse(args []string) (*settings, error) {
	read := &settings{}
	flags := flag.NewFlagSet("lattice-engine "+Mode, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&read.iface, "interface", "lattice0", "the tunnel's interface")
	group := flags.Uint("group", 0, "group whose processes are not bound: those that keep the tunnel")
	from := flags.String("probes-from", "", "addresses that probes come from, separated by commas")
	ports := flags.String("probe-ports", "", "TCP ports that are probed, separated by commas")
	allowed := flags.String("allow", "", "networks that are reached beside the tunnel, and may reach the pod, separated by commas")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stderr)
		flags.PrintDefaults()
		return nil, err
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q: see `lattice-engine %s --help`", flags.Arg(0), Mode)
	}
	if err == nil && *group == 0 {
		err = errors.New("--group is needed: without it the tunnel itself could not be kept")
	}
	read.group = uint32(*group)
	for _, one := range []struct {
		name, text string
		into       *[]netip.Prefix
	}{{"probes-from", *from, &read.probesFrom}, {"allow", *allowed, &read.allowed}} {
		for _, text := range split(one.text) {
			prefix, bad := parsePrefix(text)
			if bad != nil {
				err = errors.Join(err, fmt.Errorf("--%s: %w", one.name, bad))
			}
			*one.into = append(*one.into, prefix)
		}
	}
	for _, text := range split(*ports) {
		port, bad := strconv.ParseUint(text, 10, 16)
		if bad != nil || port == 0 {
			err = errors.Join(err, fmt.Errorf("--probe-ports: %q is not a port", text))
		}
		read.probePorts = append(read.probePorts, uint16(port))
	}
	return read, err
}

func split(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

func parsePrefix(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Masked(), nil
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network", text)
	}
	return netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen()), nil
}
