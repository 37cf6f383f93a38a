package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// auth checks bearer keys. It holds digests: they are equally long, so that
// comparing them tells nothing, and no key stays in memory here.
type auth struct{ digests [][32]byte }

func newAuth(keys []string) auth {
	var a auth
	for _, k := range keys {
		a.digests = append(a.digests, sha256.Sum256([]byte(k)))
	}
	return a
}

// check refuses a request without a valid key, where there are keys.
func (a auth) check(r *http.Request) error {
	if len(a.digests) == 0 {
		return nil
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return errNoKey
	}
	digest := sha256.Sum256([]byte(strings.TrimSpace(key)))
	match := 0
	for _, d := range a.digests {
		match |= subtle.ConstantTimeCompare(d[:], digest[:])
	}
	if match == 0 {
		return errKey
	}
	return nil
}

// fromHere says that no web page of another host can have caused the request:
// such a page can make a browser call us, but Host or Origin gives it away.
func fromHere(r *http.Request) bool {
	return loopback(r.Host) && loopbackOrigin(r.Header.Get("Origin"))
}

// loopback says that hostport, with or without a port, names this machine.
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
