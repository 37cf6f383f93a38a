package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestDoorServesAllWhileOthersOnlyBegin has more clients of both kinds than may be connected.
func TestDoorServesAllWhileOthersOnlyBegin(t *testing.T) {
	d, err := openDoor("127.0.0.1:0", 20, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	s := serveHTTP(t.Context(), d, http.NotFoundHandler(), failed, slog.New(slog.DiscardHandler))
	var clients sync.WaitGroup
	for range 50 {
		conn, err := net.Dial("tcp", d.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		clients.Go(func() { // ends when it is closed, here or there
			io.WriteString(conn, "GET / HTTP/1.1\r\n")
			io.Copy(io.Discard, conn)
		})
		clients.Go(func() {
			res, err := http.Get("http://" + d.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
		})
	}
	for n := range 100 {
		res, err := http.Get("http://" + d.Addr().String())
		if err != nil {
			t.Fatal(n, err)
		}
		res.Body.Close()
	}
	s.Close()
	clients.Wait()
	for began := time.Now(); d.opened() > 0; runtime.Gosched() { // net/http does not wait for its connections
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d connections are still counted", d.opened())
		}
	}
	if d.headers != 0 || d.leaving != 0 || d.beginning != 0 || d.quiet.Len()+d.partial.Len() != 0 {
		t.Errorf("%d headers, %d leaving, %d beginning, %d quiet, %d partial", d.headers, d.leaving, d.beginning, d.quiet.Len(), d.partial.Len())
	}
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
}
