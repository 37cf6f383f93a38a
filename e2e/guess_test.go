package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
)

// TestAttackOfWrongKeys guesses keys, from one address and from many that a proxy names,
// beside a file of 5,000 keys. No request of a good client fails meanwhile, also not at the
// address that guesses. With ATTACK there are 20,000 guesses from the one address and one
// from each of 10,000; without, a twentieth of them.
func TestAttackOfWrongKeys(t *testing.T) {
	const knownKeys = 5000
	fromOne, addresses := 20_000, 10_000
	if os.Getenv("ATTACK") == "" {
		fromOne, addresses = fromOne/20, addresses/20
	}
	keys := keysFile(t, append(manyKeys(knownKeys-1), keyBlock(goodKey))...)
	s := newSoak(t, start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=0", "PROXY_TRUSTED_PROXIES=127.0.0.1", "PROXY_API_KEYS_FILE="+keys))
	s.bearer = goodKey
	const attacker = "198.51.100.7"
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	ask := func(method, path, bearer, from string, want int) error {
		req, err := http.NewRequest(method, s.url+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
		req.Header.Set("X-Forwarded-For", from)
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		io.Copy(io.Discard, res.Body) // so that the connection can be used again
		if res.StatusCode != want {
			return fmt.Errorf("%s with %s from %s: %d, want %d", path, bearer, from, res.StatusCode, want)
		}
		return nil
	}
	guess := func(i int) error {
		const wrong = http.StatusUnauthorized
		switch bearer := fmt.Sprint("guess-", i); i % 3 {
		case 0:
			return ask("GET", "/verify", bearer, attacker, wrong)
		case 1:
			return ask("POST", chatPath, bearer, attacker, wrong)
		default:
			return ask("GET", "/verify", bearer, fmt.Sprintf("203.%d.%d.7", i/3/256, i/3%256), wrong)
		}
	}
	good := func(i int) {
		s.play(wish{text: fmt.Sprint("canary-", i), n: 1, stream: i%2 == 0})
		for _, from := range []string{attacker, "192.0.2.1"} {
			if err := ask("GET", "/verify", goodKey, from, http.StatusOK); err != nil {
				t.Error(err)
			}
		}
	}
	good(0) // it is known at the address that will guess
	before, peak := s.weigh(), s.peak()

	over := make(chan struct{})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() { // ends with over
			for i := 1; ; i++ {
				select {
				case <-over:
					return
				default:
					good(i)
				}
			}
		})
	}
	s.spread(fromOne+addresses, 4, guess)
	close(over)
	clients.Wait()

	if whole := s.outcomes["whole"]; whole < 3 || len(s.outcomes) != 1 {
		t.Errorf("the answers to good clients: %v", s.outcomes)
	}
	s.heapWithin(before, room, "after the guesses")
	s.bounded(peak)
	t.Logf("%d wrong keys from one address, and one from each of %d others, beside a file of %d keys: %d answers to good clients, all whole; the most memory was %d MB, before %d MB",
		fromOne, addresses, knownKeys, s.outcomes["whole"], s.peak()>>20, peak>>20)
}
