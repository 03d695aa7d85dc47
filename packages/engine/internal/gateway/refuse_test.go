package gateway

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
)

func TestBadStateIsRefusedAndChangesNothing(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		one, two := g.client("one", "10.96.2.5"), g.client("two", "10.96.2.6")
		g.put(one.body(nil), two.body(nil, toTCP(one, 80)))
		before := g.get("/v1/peers")
		with := func(field string, value any) m {
			body := g.client("three", "10.96.2.7").body(600)
			body[field] = value
			return m{"revision": 9, "upsert": []m{body}}
		}
		granting := func(to, protocol string, port any) m {
			return with("grants", []m{{"to": to, "protocol": protocol, "port": port}})
		}
		for name, c := range map[string]struct {
			body any
			code string
		}{
			"no JSON":                 {`{"revision": `, "invalid_json"},
			"an array":                {`[]`, "invalid_json"},
			"an unknown field":        {m{"revison": 1}, "invalid_json"},
			"a port of text":          {granting("10.96.2.5", "tcp", "80"), "invalid_json"},
			"no id":                   {with("id", ""), "invalid_id"},
			"a long id":               {with("id", strings.Repeat("x", 300)), "invalid_id"},
			"a short key":             {with("publicKey", "AAAA"), "invalid_public_key"},
			"a zero key":              {with("publicKey", publicKey{}.String()), "invalid_public_key"},
			"a key of text":           {with("publicKey", "not base64"), "invalid_public_key"},
			"an address outside":      {with("address", "10.97.0.1"), "invalid_address"},
			"an IPv6 address":         {with("address", "fd00::1"), "invalid_address"},
			"the gateway's address":   {with("address", "10.96.0.1"), "invalid_address"},
			"the broadcast address":   {with("address", "10.96.255.255"), "invalid_address"},
			"the network's address":   {with("address", "10.96.0.0"), "invalid_address"},
			"a prefix":                {with("address", "10.96.2.7/32"), "invalid_address"},
			"a life beyond measure":   {with("expiresIn", 1e30), "invalid_expires_in"},
			"a grant to nowhere":      {granting("127.0.0.1", "tcp", 80), "invalid_grant"},
			"a grant to half a net":   {granting("10.96.0.0/17", "tcp", 80), "invalid_grant"},
			"a grant to all of a net": {granting("10.0.7.0/24", "any", 0), "invalid_grant"},
			"a grant of port 0":       {granting("10.96.2.5", "tcp", 0), "invalid_grant"},
			"a grant of port 70000":   {granting("10.96.2.5", "udp", 70000), "invalid_grant"},
			"any with a port":         {granting("10.96.2.5", "any", 80), "invalid_grant"},
			"an unknown protocol":     {granting("10.96.2.5", "sctp", 80), "invalid_grant"},
			"an address in use":       {with("address", "10.96.2.5"), "duplicate_address"},
			"a key in use":            {with("publicKey", one.public.String()), "duplicate_key"},
			"an id twice":             {m{"revision": 9, "upsert": []m{one.body(nil), one.body(nil)}}, "duplicate_id"},
			"upserted and removed":    {m{"revision": 9, "upsert": []m{one.body(nil)}, "remove": []string{"one"}}, "duplicate_id"},
			"an address twice":        {m{"revision": 9, "upsert": []m{g.client("a", "10.96.3.1").body(1), g.client("b", "10.96.3.1").body(1)}}, "duplicate_address"},
			"a bad peer after a good": {m{"revision": 9, "upsert": []m{g.client("a", "10.96.3.1").body(1), g.client("b", "10.96.2.6").body(1)}}, "duplicate_address"},
		} {
			t.Run(name, func(t *testing.T) {
				code, answer := g.request(http.MethodPatch, "/v1/state", c.body)
				if code < 400 || code >= 500 || answer["code"] != c.code || answer["detail"] == "" {
					t.Errorf("%d %v, want %s", code, answer, c.code)
				}
			})
		}
		if after := g.get("/v1/peers"); !reflect.DeepEqual(before, after) {
			t.Errorf("changed: %v", after)
		}
		if status := g.get("/v1/status"); status["revision"] != 1.0 || status["grants"] != 1.0 {
			t.Errorf("changed: %v", status)
		}
	})
}

func TestRemovingWhatIsNotThereIsNoError(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		if answer := g.remove("nobody"); answer["peers"] != 0.0 {
			t.Errorf("%v", answer)
		}
	})
}
