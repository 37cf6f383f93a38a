package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// room is how much the daemon's memory may grow in these tests, in bytes.
const room = 64 << 20

// heapWithin fails the test if the daemon holds much more than before.
func (d *daemon) heapWithin(before weight, more float64, when string) {
	d.t.Helper()
	now := d.weigh()
	d.t.Logf("%s: %.0f MB of %.0f MB before", when, now.heap/(1<<20), before.heap/(1<<20))
	if now.heap > before.heap+more {
		d.t.Errorf("%s: the daemon holds %.0f MB, %.0f MB before", when, now.heap/(1<<20), before.heap/(1<<20))
	}
}

// wellServed fails the test if one of n small requests fails.
func (d *daemon) wellServed(n int) {
	d.t.Helper()
	for range n {
		res, err := d.post(chatBody("hi", false))
		if err != nil {
			d.t.Error(err)
			continue
		}
		if res.StatusCode != http.StatusOK {
			d.t.Errorf("a good client got %s", failure(d.t, res))
		}
		res.Body.Close()
	}
}

// unfinished sends a body of 16 MB but for its last byte, and returns the status of the
// answer that comes nevertheless; 0 where none has come when end is closed.
func (d *daemon) unfinished(body string, end <-chan struct{}) (status int) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		d.t.Error(err)
		return 0
	}
	defer conn.Close()
	go func() { // ends with the connection
		<-end
		conn.Close()
	}()
	go func() { // ends with the connection
		fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", key, len(body)+1)
		io.WriteString(conn, body)
	}()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

func TestBodiesThatDoNotEndTakeNoRoomFromOthers(t *testing.T) {
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=0", "PROXY_MAX_BODY_TOTAL_BYTES=33554432")
	d.wellServed(3)
	before := d.weigh()
	const clients = 60
	const begin = `{"messages":[{"role":"user","content":"`
	body := begin + strings.Repeat("x", 16<<20-1-len(begin))
	end, statuses := make(chan struct{}), make(chan int, clients)
	for range clients {
		go func() { statuses <- d.unfinished(body, end) }()
	}
	d.wellServed(50)
	eventually(t, time.Minute, "bodies that were turned away", func() bool { return len(statuses) > clients/2 })
	d.wellServed(50)
	d.heapWithin(before, room, "while bodies do not end")
	close(end)
	for range clients {
		if status := <-statuses; status != 0 && status != http.StatusServiceUnavailable {
			t.Errorf("status %d", status)
		}
	}
	d.wellServed(1)
	d.heapWithin(before, 4<<20, "afterwards")
}

func TestLargeBodiesHoldBoundedMemory(t *testing.T) {
	up := newUpstream(t, codextest.Text("ok"))
	d := start(t, "POOL_SIZE=2", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_MAX_BODY_TOTAL_BYTES=33554432")
	d.wellServed(3)
	before := d.weigh()
	body := chatBody(strings.Repeat("word ", 3<<20), false)
	var clients sync.WaitGroup
	served, saturated := make(chan struct{}, 34), make(chan struct{}, 34)
	for range 34 {
		clients.Go(func() {
			res, err := d.post(body)
			if err != nil {
				saturated <- struct{}{} // its connection was closed while it still wrote
				return
			}
			if res.StatusCode == http.StatusOK {
				res.Body.Close()
				served <- struct{}{}
			} else if got := failure(t, res); got == "503 server_error pool_saturated - *" {
				saturated <- struct{}{}
			} else {
				t.Error(got)
			}
		})
	}
	d.wellServed(20)
	d.heapWithin(before, room, "under large bodies")
	clients.Wait()
	if len(served) == 0 || len(saturated) == 0 {
		t.Errorf("%d served, %d turned away: this test proves little", len(served), len(saturated))
	}
	d.full(2)
	d.heapWithin(before, 4<<20, "afterwards")
}

// TestBodyIsForgottenWhenTheProviderHasIt has two answers that last, to long prompts.
func TestBodyIsForgottenWhenTheProviderHasIt(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2 ", http2), func(t *testing.T) {
			begun, end := make(chan struct{}, 3), make(chan struct{})
			up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
				s := codextest.StartStream(w)
				s.Begin()
				begun <- struct{}{}
				<-end
				s.Delta("ok")
				s.End()
			})
			server, roots := secure(t, up, http2)
			d := start(t, "POOL_SIZE=2", "CODEX_UPSTREAM="+server.URL+"/v1", "SSL_CERT_FILE="+roots)
			before := d.weigh()
			var clients sync.WaitGroup
			for range 2 {
				clients.Go(func() {
					if got, _ := d.complete(`"messages":[{"role":"user","content":"`+strings.Repeat("word ", 3<<20)+`"}]`, true); got.finish != "stop" {
						t.Error(got)
					}
				})
			}
			<-begun
			<-begun
			d.heapWithin(before, 8<<20, "while the answers last")
			close(end)
			clients.Wait()
		})
	}
}

// endlessAnswer sends text for as long as it is read.
func endlessAnswer(w http.ResponseWriter, r *http.Request) {
	codextest.StartStream(w).Begin()
	delta := `data: {"type":"response.output_text.delta","item_id":"m","output_index":0,"delta":"` + strings.Repeat("x", 100_000) + "\"}\n\n"
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, delta); err != nil {
			return
		}
	}
}

func TestAnswerWithoutEndHoldsBoundedMemory(t *testing.T) {
	up := newUpstream(t, codextest.Text("ok"))
	d := start(t, "POOL_SIZE=3", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_WRITE_TIMEOUT_MS=60000")
	d.wellServed(3)
	before := d.weigh()
	up.Script(endlessAnswer)
	for _, fields := range []string{hi, `"n":3,` + hi} {
		if got, want := failure(t, d.request("POST", "/v1/chat/completions", "Bearer "+key, "application/json", "{"+fields+"}")), "502 server_error answer_too_large -"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	d.full(3)
	d.heapWithin(before, 4<<20, "after answers in one piece")
	d.postWithoutReading(true)
	eventually(t, time.Minute, "stream", func() bool { return d.metrics()[`codexpool_sse_streams{state="open"}`] == 1 })
	up.Script(codextest.Text("ok"))
	d.wellServed(20)
	d.heapWithin(before, 8<<20, "while a stream is not read")
}

// TestUsageThatCannotBeHarmsNothing has a provider that counts wrongly.
func TestUsageThatCannotBeHarmsNothing(t *testing.T) {
	d, up := withRelay(t, codextest.Text("ok"))
	for _, count := range []string{"-1", "9223372036854775807"} {
		up.Script(func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			s.Begin()
			s.Delta("ok")
			fmt.Fprintf(w, "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":%s,\"output_tokens\":%s}}}\n\n", count, count)
		})
		res, err := d.post(chatBody("hi", false))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), `"usage":null`) {
			t.Errorf("%d %v %s", res.StatusCode, err, body)
		}
	}
	if d.total("codexpool_http_requests_total", `code="200"`, `route="chat"`) != 2 || d.total("codexpool_input_tokens_total") != 0 {
		t.Error("the requests are not counted")
	}
	if log := d.logged(); strings.Contains(log, "panic") {
		t.Error(log)
	}
}
