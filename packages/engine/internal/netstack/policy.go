package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Policy is what the control plane granted, as far as it explains a refusal. The gateway decides.
type Policy struct {
	Preset string  `json:"preset"`
	Grants []Grant `json:"grants"`
}

// Grant is one kind of flow that is allowed.
type Grant struct {
	To       string `json:"to"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// Refusal is an attempt that policy did not let through.
type Refusal struct{ sentence string }

func (r *Refusal) Error() string { return r.sentence }

func (p *Policy) grants(protocol string, to netip.AddrPort) bool {
	return p == nil || slices.ContainsFunc(p.Grants, func(g Grant) bool {
		prefix, err := parsePrefix(g.To)
		return err == nil && prefix.Contains(to.Addr()) && (g.Port == 0 || g.Port == to.Port()) &&
			(g.Protocol == protocol || g.Protocol == "any")
	})
}

// refuse words the refusal of a destination that the policy does not hold.
func (p *Policy) refuse(protocol, destination string, names map[string]netip.Addr) *Refusal {
	preset, allowed := "of this identity", "nothing"
	if p != nil {
		preset = fmt.Sprintf("%q", p.Preset)
		if len(p.Grants) > 0 {
			allowed = p.describe(names)
		}
	}
	return &Refusal{fmt.Sprintf("the preset %s does not allow %s to %s; it allows %s. %s",
		preset, protocol, destination, allowed, p.advice())}
}

const shownGrants = 8

func (p *Policy) describe(names map[string]netip.Addr) string {
	byAddress := map[string]string{}
	for name, address := range names {
		if known, ok := byAddress[address.String()]; !ok || name < known {
			byAddress[address.String()] = name
		}
	}
	var shown []string
	for _, grant := range p.Grants {
		name := grant.To
		if known, ok := byAddress[grant.To]; ok {
			name = known
		}
		if grant.Port != 0 {
			name = fmt.Sprintf("%s:%d", name, grant.Port)
		}
		if grant.Protocol != "tcp" {
			name += "/" + grant.Protocol
		}
		if len(shown) == shownGrants {
			return strings.Join(shown, ", ") + fmt.Sprintf(" and %d more", len(p.Grants)-shownGrants)
		}
		shown = append(shown, name)
	}
	return strings.Join(shown, ", ")
}

func (p *Policy) advice() string {
	if p == nil {
		return "Ask the workspace's administrator for a grant."
	}
	switch p.Preset {
	case "isolated":
		return "To allow it, enroll with this destination in `allow`."
	case "coordinator":
		return "To allow it, add it as a tool service of the workspace, or enroll the other agent with a preset that accepts ingress."
	default:
		return "To allow it, designate a tool service for it in the workspace, or enroll with a preset that reaches it."
	}
}
