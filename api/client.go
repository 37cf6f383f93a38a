package api

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// peer is the address at the other end of the connection.
func peer(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr().Unmap()
}

// trusts reports whether the proxy at addr is believed what it says of its clients.
func (s *Server) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// client is the address that a request comes from: the peer's, or behind trusted
// proxies the one that the outermost of them saw. What a client writes itself stands
// to the left of that, and is never read.
func (s *Server) client(r *http.Request) netip.Addr {
	addr := peer(r)
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		next, err := netip.ParseAddr(strings.TrimSpace(hop))
		if !s.trusts(addr) || err != nil {
			break
		}
		addr = next.Unmap()
	}
	return addr
}

// Wrong keys that an address may try in a minute, and addresses that are remembered.
const (
	maxGuesses   = 10
	maxAddresses = 10_000
)

// guesses limits how often a client address may try keys that are wrong. Beyond the
// limit no key of that address is looked at for the rest of the minute, except one
// that was right there before: behind one address there may be many clients, and one
// with an old key must not lock the others out.
//
// Its memory is bounded. Whoever has so many addresses that they do not fit does not
// need to try twice from one.
type guesses struct {
	mu     sync.Mutex
	minute time.Time          // when the counting began
	wrong  map[netip.Addr]int // since then
	proven map[proof]struct{} // guarded by mu, as are the others
}

type proof struct {
	from netip.Addr
	key  string // its name
}

func newGuesses() *guesses {
	return &guesses{wrong: map[netip.Addr]int{}, proven: map[proof]struct{}{}}
}

// judge returns err, what became of a key that came from an address, or that the
// address has tried too many.
func (g *guesses) judge(from netip.Addr, caller Caller, err error) error {
	from = network(from)
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.minute) >= time.Minute {
		g.minute = now
		clear(g.wrong)
	}
	this := proof{from, caller.Key}
	_, proven := g.proven[this]
	switch {
	case g.wrong[from] >= maxGuesses && !proven:
		return errTooManyKeys
	case errors.Is(err, errKey):
		makeRoom(g.wrong)
		g.wrong[from]++
	case err == nil && !proven:
		makeRoom(g.proven)
		g.proven[this] = struct{}{}
	}
	return err
}

func makeRoom[K comparable, V any](m map[K]V) {
	if len(m) >= maxAddresses {
		clear(m)
	}
}

// network is the address, or of an IPv6 one the network: a client has all of a /64.
func network(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		p, _ := addr.Prefix(64)
		return p.Addr()
	}
	return addr
}
