package main

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
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
	opened := func() int { return doors{"": d}.opened()[""] }
	for began := time.Now(); opened() > 0; runtime.Gosched() { // net/http does not wait for its connections
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d connections are still counted", opened())
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

// exhausted is a listener whose process has no descriptor for the first connections.
type exhausted struct {
	net.Listener
	times *int
}

func (l exhausted) Accept() (net.Conn, error) {
	if *l.times > 0 {
		*l.times--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestDoorCountsAndLogsWhatItCannotAccept(t *testing.T) {
	var log bytes.Buffer
	d, err := openDoor("127.0.0.1:0", 20, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	times := 3
	d.Listener = exhausted{d.Listener, &times}
	s := serveHTTP(t.Context(), d, http.NotFoundHandler(), make(chan error, 1), slog.New(slog.DiscardHandler))
	res, err := http.Get("http://" + d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	s.Close() // which ends Accept too, and that is no failure
	if n := (doors{"public": d}).notAccepted(); n != 3 {
		t.Errorf("%d are counted", n)
	}
	d.mu.Lock() // the log is written under it
	defer d.mu.Unlock()
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=WARN msg="a connection was not accepted" err="accept tcp: accept4: too many open files"`) {
		t.Errorf("the log says %s", got)
	}
}
