// Package upstream is the Responses API that children post to on loopback: the
// relay to the provider, and the echo, a provider that needs no network.
//
// cmd serves it on a loopback listener of its own. Each child has a secret path
// through the [Gate], so that no other process of the machine can use the relay.
// The relay has the provider's address and credential. For each running turn it
// also has the caller's exact parameters, under a key that travels through the
// child. The echo is behind the relay like any other provider.
package upstream

import (
	"crypto/rand"
	"net/http"
	"strings"
	"sync"
)

// Gate passes to a handler only requests under a path that it gave out. All
// methods may be called from any goroutine.
type Gate struct {
	next http.Handler

	mu    sync.RWMutex
	paths map[string]struct{} // guarded by mu
}

// NewGate makes a gate in front of next, which sees paths without the part that
// was given out.
func NewGate(next http.Handler) *Gate {
	return &Gate{next: next, paths: map[string]struct{}{}}
}

// Admit gives out a path of at least 128 random bits, such as "/4T…", for one
// child. The caller must call revoke when the child is gone; then the path is a 404.
func (g *Gate) Admit() (path string, revoke func()) {
	key := rand.Text()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paths[key] = struct{}{}
	return "/" + key, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.paths, key)
	}
}

// ServeHTTP answers 404 to a request under no valid path.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	g.mu.RLock()
	_, ok := g.paths[key]
	g.mu.RUnlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.StripPrefix("/"+key, g.next).ServeHTTP(w, r)
}
