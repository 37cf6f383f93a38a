package api

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

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
