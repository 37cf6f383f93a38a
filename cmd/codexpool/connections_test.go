package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections need no network, so that they can be in a
// bubble.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if conn, ok := <-p; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A balancer before us that keeps a connection for longer than we do sends requests into
// connections that we are closing. Caddy keeps them for 2 minutes.
func TestIdleConnectionIsKeptForLongerThanABalancerKeepsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := make(pipes)
		served := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }
		server := newServer(t.Context(), http.HandlerFunc(served), slog.New(slog.DiscardHandler))
		go server.Serve(listener) // ends with Close
		var conn net.Conn
		client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			if conn != nil {
				t.Error("a second connection")
			}
			var its net.Conn
			conn, its = net.Pipe()
			listener <- its
			return conn, nil
		}}}
		for range 2 {
			res, err := client.Get("http://daemon/")
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			time.Sleep(4 * time.Minute)
		}
		client.CloseIdleConnections()
		close(listener)
		server.Close()
	})
}
