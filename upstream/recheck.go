package upstream

import (
	"context"
	"net/http"
	"time"
)

// maxInconclusive is how many rechecks of a rejected credential in a row may bring
// no result. Some providers have no list of models, so no recheck brings one.
const maxInconclusive = 2

// Rejected reports whether there is no usable credential, or the provider rejected
// it and has not accepted it since.
func (r *Relay) Rejected() bool { return r.rejected.Load() || r.authorize(http.Header{}) != nil }

// Watch rechecks a credential that the provider rejected, until it is accepted.
// While the daemon is not ready, load balancers send no completion that could show
// that; a recheck costs nothing. After maxInconclusive rechecks without a result
// Rejected becomes false, and the next completion decides.
//
// every is the time between two rechecks. Watch returns when ctx ends.
func (r *Relay) Watch(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	inconclusive := 0 // rechecks in a row
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !r.rejected.Load() {
			inconclusive = 0
			continue
		}
		accepted, conclusive := r.recheck(ctx)
		if inconclusive++; conclusive {
			inconclusive = 0
		}
		if accepted || inconclusive >= maxInconclusive {
			r.rejected.Store(false)
		}
	}
}

// recheck requests the list of models. A 403 means that the credential is valid
// but may not list models, a 401 about the region that it is valid elsewhere. Other errors
// show nothing about the credential.
func (r *Relay) recheck(ctx context.Context) (accepted, conclusive bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := r.requestModels(ctx)
	if err != nil {
		return false, false
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return true, true
	}
	f := r.readFailure(ctx, res)
	switch {
	case f.Blocked:
		return false, false
	case res.StatusCode == http.StatusForbidden, f.Region:
		return true, true
	case res.StatusCode == http.StatusUnauthorized:
		return false, true
	}
	return false, false
}
