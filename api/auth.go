package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Caller identifies the sender of a request by its key. It holds no secret.
type Caller struct {
	Key string // the key's name; "" where no key is required
}

// auth checks bearer keys. It holds digests: they are equally long, so that
// comparing them reveals nothing, and no key stays in memory here.
type auth struct{ digests [][32]byte }

func newAuth(keys []string) auth {
	var a auth
	for _, k := range keys {
		a.digests = append(a.digests, sha256.Sum256([]byte(k)))
	}
	return a
}

// names lists the names of the keys: they have no other than their number in
// PROXY_API_KEY, from "1".
func (a auth) names() (names []string) {
	for i := range a.digests {
		names = append(names, strconv.Itoa(i+1))
	}
	return names
}

// authenticate returns the caller of a request, or rejects one without a valid
// key, where there are keys. Every wrong key costs the same time.
func (a auth) authenticate(r *http.Request) (Caller, error) {
	if len(a.digests) == 0 {
		return Caller{}, nil
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return Caller{}, errNoKey
	}
	digest := sha256.Sum256([]byte(strings.TrimSpace(key)))
	match := -1
	for i, d := range a.digests {
		if subtle.ConstantTimeCompare(d[:], digest[:]) == 1 {
			match = i
		}
	}
	if match < 0 {
		return Caller{}, errKey
	}
	return Caller{Key: a.names()[match]}, nil
}

// fromHere reports whether no web page of another host can have caused the
// request: such a page can make a browser call us, but Host or Origin shows it.
func fromHere(r *http.Request) bool {
	return loopback(r.Host) && loopbackOrigin(r.Header.Get("Origin"))
}

// loopback reports whether hostport, with or without a port, names this machine.
func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func loopbackOrigin(origin string) bool {
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && loopback(u.Host)
}
