// Package upstream is the Responses API that children post to on loopback: the
// relay to the provider, and a provider for those who have none, the echo.
//
// cmd serves it on a listener of its own. A child knows only its own path
// through the [Gate], so that no other process of the machine can use it. The
// relay knows the provider, the credential, and for each running turn what its
// caller asked for, by a key that travels through the child. The echo stands
// behind the relay like any provider.
package upstream

import (
	"crypto/rand"
	"net/http"
	"strings"
	"sync"
)

// Gate lets through to a handler only requests under a path that it gave out.
type Gate struct {
	next http.Handler

	mu    sync.RWMutex
	paths map[string]struct{} // guarded by mu
}

// NewGate stands before next, which sees paths without the part given out.
func NewGate(next http.Handler) *Gate {
	return &Gate{next: next, paths: map[string]struct{}{}}
}

// Admit gives out a path of 128 random bits, such as "/4T…", for one child.
// revoke takes it back once the child is gone.
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

// ServeHTTP answers 404 to whoever does not know a path.
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
