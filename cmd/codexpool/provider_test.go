package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/configs"
	"codexpool/upstream"
)

func TestTargetIsOpenAIWithItsKey(t *testing.T) {
	p := &provider{providerConfig: providerConfig{upstream: configs.OpenAI, key: "k"}}
	target, err := p.target(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	if err := target.Credential(h); err != nil || h.Get("Authorization") != "Bearer k" {
		t.Errorf("credential %v, %v", h, err)
	}
	if target.Base.String() != "https://api.openai.com/v1" || !reflect.DeepEqual(target.Kind, upstream.OpenAI) || p.credential != "API key" {
		t.Errorf("base %v, kind %v, credential %q", target.Base, target.Kind, p.credential)
	}
}

// TestTransportGivesUpADeadConnection has a network that drops all that is sent over
// the first connection, without closing it.
func TestTransportGivesUpADeadConnection(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())

	network := transport(2)
	defer network.CloseIdleConnections()
	if c := network.HTTP2; c == nil || c.SendPingTimeout <= 0 || c.SendPingTimeout+c.PingTimeout > 30*time.Second {
		t.Fatalf("HTTP/2: %+v", c)
	}
	network.HTTP2.SendPingTimeout, network.HTTP2.PingTimeout = 50*time.Millisecond, 50*time.Millisecond
	network.TLSClientConfig = &tls.Config{RootCAs: roots}
	var connections, swallowed atomic.Int32
	dial := network.DialContext
	network.DialContext = func(ctx context.Context, kind, addr string) (net.Conn, error) {
		conn, err := dial(ctx, kind, addr)
		return swallower{conn, connections.Add(1), &swallowed}, err
	}
	get := func() (string, error) {
		res, err := (&http.Client{Transport: network}).Get(server.URL)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return string(body), err
	}
	if got, err := get(); got != "HTTP/2.0" || err != nil {
		t.Fatal(got, err)
	}
	swallowed.Store(1)
	if got, err := get(); err == nil {
		t.Errorf("over a swallowed connection: %q", got)
	}
	if got, err := get(); got != "HTTP/2.0" || err != nil || connections.Load() != 2 {
		t.Errorf("the next: %q, %v, over connection %d", got, err, connections.Load())
	}
}

// swallower is a connection whose writes go nowhere once it is swallowed.
type swallower struct {
	net.Conn
	number    int32
	swallowed *atomic.Int32 // the number of the connection that is
}

func (s swallower) Write(b []byte) (int, error) {
	if s.swallowed.Load() == s.number {
		return len(b), nil
	}
	return s.Conn.Write(b)
}

// listless is a provider that rejects the credential, and has no list of models.
type listless struct{}

func (listless) RoundTrip(r *http.Request) (*http.Response, error) {
	status := http.StatusUnauthorized
	if r.Method == http.MethodGet {
		status = http.StatusNotFound
	}
	return &http.Response{StatusCode: status, Body: http.NoBody, Request: r}, nil
}

// Nobody can see whether a new credential is accepted, so within a minute a completion
// must be let through to try.
func TestKeepForgetsARejectedCredentialWithinAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay := upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}}, listless{}, upstream.Hooks{})
		call := relay.Prepare(t.Context(), func() upstream.Request { return upstream.Request{} }, func() {})
		defer call.Done()
		turn := httptest.NewRequest("POST", "/v1/responses", strings.NewReader("{}"))
		turn.Header.Set("X-Codex-Turn-Metadata", fmt.Sprintf("{%q:%q}", upstream.MetaKey, call.Key))
		relay.ServeHTTP(httptest.NewRecorder(), turn)
		if !relay.Rejected() {
			t.Fatal("the 401 is not known")
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go (&provider{relay: relay}).keep(ctx, nil, nil) // ends with ctx, for which the bubble waits
		time.Sleep(time.Minute)
		synctest.Wait()
		if relay.Rejected() {
			t.Error("the daemon is not ready a minute later")
		}
	})
}
