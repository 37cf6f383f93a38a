package codex_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/upstream"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

const wordDelay = 20 * time.Millisecond

func TestMain(m *testing.M) {
	codextest.Main(m, children)
}

func TestTurnsInMemory(t *testing.T) {
	codextest.TestTurns(t, func(t *testing.T) *codex.Client {
		return connect(t, codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: wordDelay}))
	})
}

func TestTurnsReexecuted(t *testing.T) {
	codextest.TestTurns(t, func(t *testing.T) *codex.Client {
		return start(t, codextest.Command(t, "serve"))
	})
}

func TestTurnsReal(t *testing.T) {
	t.Parallel()
	codextest.TestTurns(t, func(t *testing.T) *codex.Client {
		server := httptest.NewServer(codextest.Calling(upstream.Echo(wordDelay)))
		t.Cleanup(server.Close)
		return start(t, codextest.Real(t, server.URL+"/v1"))
	})
}

// connect plays the steps in memory.
func connect(t *testing.T, steps ...codextest.Step) *codex.Client {
	t.Helper()
	c, err := codex.Connect(t.Context(), codextest.Pipe(t, steps), codextest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func start(t *testing.T, cmd codex.Command) *codex.Client {
	t.Helper()
	c, err := codex.Start(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if _, err := os.Stat(cmd.Home); !os.IsNotExist(err) {
			t.Errorf("the home is still there: %v", err)
		}
	})
	return c
}

// run runs one turn and writes down what it yields.
func run(t *testing.T, c *codex.Client, p codex.TurnParams) (events []string, err error) {
	t.Helper()
	for e, err := range c.Turn(t.Context(), p) {
		if err != nil {
			return events, err
		}
		if _, tick := e.(codex.Tick); !tick {
			events = append(events, fmt.Sprintf("%T%+v", e, e))
		}
	}
	return events, nil
}

func hello() codex.TurnParams {
	return codex.TurnParams{Items: []json.RawMessage{codextest.UserItem("hello")}}
}
