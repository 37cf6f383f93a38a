package upstream

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Verify asks the provider for its list of models, as a completion would be sent: over
// the same transport, with the same credential. It costs nothing, and returns the status
// of the answer. Many providers have no such list.
func (r *Relay) Verify(ctx context.Context) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := r.requestModels(ctx)
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	return res.StatusCode, nil
}

// Proxy is the proxy on the way to the provider; nil where there is none. Its URL may
// hold a password.
func (r *Relay) Proxy() (*url.URL, error) {
	transport, ok := r.transport.(*http.Transport)
	if !ok || transport.Proxy == nil {
		return nil, nil
	}
	return transport.Proxy(&http.Request{URL: r.provider.Base})
}
