package codextest

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
)

const childVar = "CODEXTEST_CHILD"

var (
	startedMu sync.Mutex
	started   = map[string]bool{} // children that Command has started; guarded by startedMu
)

// Main runs the tests, or plays the child that the environment names: this test
// binary is its own fake. Call it from TestMain; it does not return. A run of all
// tests fails when one of the children was never started. Any run fails when a process
// of a test is still there at the end: a child that outlives its test is the bug that
// codexpool most needs to catch.
func Main(m *testing.M, children map[string]func()) {
	if name := os.Getenv(childVar); name != "" {
		play, ok := children[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "no such child: %s\n", name)
			os.Exit(2)
		}
		play()
		os.Exit(0)
	}
	code := m.Run()
	if code == 0 && wholeRun() {
		for _, name := range slices.Sorted(maps.Keys(children)) {
			if !started[name] {
				fmt.Printf("child %q is registered, but no test started it\n", name)
				code = 1
			}
		}
	}
	if alive := survivors(); len(alive) > 0 {
		fmt.Printf("processes of the tests are still alive: %v\n", alive)
		code = 1
	}
	os.Exit(code)
}

// wholeRun reports that no flag excludes a test.
func wholeRun() bool {
	for _, arg := range os.Args[1:] {
		for _, flag := range []string{"run", "short", "list", "bench", "fuzz", "skip"} {
			if strings.HasPrefix(strings.TrimLeft(arg, "-"), "test."+flag) {
				return false
			}
		}
	}
	return true
}

// survivors lists the descendants of this process that still run. Orphans of a
// dead child have another parent, but keep the mark in their environment.
func survivors() []string {
	mark := markVar + "=" + strconv.Itoa(os.Getpid())
	var alive []string
	for range 50 { // a killed group needs a moment to end
		alive = alive[:0]
		environs, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range environs {
			env, err := os.ReadFile(path)
			if err == nil && slices.Contains(strings.Split(string(env), "\x00"), mark) {
				comm, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
				alive = append(alive, filepath.Base(filepath.Dir(path))+" "+strings.TrimSpace(string(comm)))
			}
		}
		if len(alive) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond) // there is nothing to wait on: they are not our children
	}
	return alive
}

// markVar marks every process that a test starts, and its descendants.
const markVar = "CODEXTEST_OF"

// Mark is the variable to give to a child so that [Main] notices when it
// outlives its test.
func Mark() string { return markVar + "=" + strconv.Itoa(os.Getpid()) }

// Command runs this test binary again as the named child.
func Command(t testing.TB, child string) codex.Command {
	t.Helper()
	startedMu.Lock()
	started[child] = true
	startedMu.Unlock()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return codex.Command{
		Path:      self,
		Args:      []string{"app-server"},
		Home:      Home(t),
		Env:       []string{childVar + "=" + child, Mark(), "GORACE=atexit_sleep_ms=0"}, // a raced binary lingers a second
		StopGrace: 200 * time.Millisecond,                                               // long for a fake, short for a test
		Log:       Log(t),
	}
}

// Home is the path of a child's home that does not exist yet.
func Home(t testing.TB) string { return filepath.Join(t.TempDir(), "home") }

// Play plays s on the standard streams, for a child given to [Main].
func Play(s Script) {
	if err := s.serve(os.Stdin, os.Stdout, os.Exit); err != nil && err != io.EOF {
		fmt.Fprintln(os.Stderr, "played child:", err)
		os.Exit(3)
	}
}

// Until polls ok, for an event in another process. It fails the test after 20 s.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("no %s", what)
		}
	}
}

// Log logs to the test.
func Log(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
