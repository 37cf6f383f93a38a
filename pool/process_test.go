package pool_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
)

// What these tests are about only a process has: memory, and death by a signal.

func TestMain(m *testing.M) {
	codextest.Main(m, map[string]func(){
		"serve":  func() { serve() },
		"spins":  func() { spin(); serve() },
		"hoards": func() { hoarding(func() { serve() }) },
		"has-a-helper-that-hoards": func() {
			switch os.Getenv("HELPER") {
			case "":
				startHelper("hoards")
				serve()
			case "hoards":
				hoarding(func() { codextest.Play(codextest.Script{codextest.Hang()}) })
			}
		},
		"has-a-helper-that-hoards-and-whose-parent-has-gone": func() {
			switch os.Getenv("HELPER") {
			case "":
				startHelper("goes").Wait()
				serve()
			case "goes":
				startHelper("hoards")
			case "hoards":
				hoarding(func() { time.Sleep(time.Minute) }) // it is killed with its group
			}
		},
	})
}

// startHelper runs this child again, as a helper of itself.
func startHelper(what string) *exec.Cmd {
	helper := exec.Command("/proc/self/exe")
	helper.Env = append(os.Environ(), "HELPER="+what)
	if _, err := helper.StdinPipe(); err != nil {
		panic(err)
	}
	if err := helper.Start(); err != nil {
		panic(err)
	}
	return helper
}

func serve() {
	codextest.Play(codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{})})
}

const (
	hoard = 300 << 20 // bytes
	limit = 200 << 20 // of which a raced test binary has some of its own
)

// hoarding calls f while it holds memory.
func hoarding(f func()) {
	heap := bytes.Repeat([]byte{1}, hoard)
	f()
	heap[0] = 2
}

const pause = 50 * time.Millisecond

// keep starts a pool of processes, and waits until it is full: the first is the
// named child, the others serve.
func keep(t *testing.T, cfg pool.Config, first string) *pool.Pool {
	t.Helper()
	p := begin(t, cfg, first)
	eventually(t, "a full pool", func() bool { return p.Stat().Idle == cfg.Size })
	return p
}

// begin is keep without the wait.
func begin(t *testing.T, cfg pool.Config, first string) *pool.Pool {
	t.Helper()
	names := make(chan string, 1)
	names <- first
	cfg.Log, cfg.UpkeepEvery, cfg.BackoffMin = codextest.Log(t), 10*time.Millisecond, pause
	cfg.Spawn = func(ctx context.Context) (*codex.Client, error) {
		name := "serve"
		select {
		case name = <-names:
		default:
		}
		return codex.Start(ctx, codextest.Command(t, name))
	}
	p, err := pool.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// eventually polls: what it waits for happens in other processes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("no " + what)
		}
	}
}

func TestMaxMemoryReplacesAChildBetweenItsTurns(t *testing.T) {
	for _, name := range []string{"hoards", "has-a-helper-that-hoards", "has-a-helper-that-hoards-and-whose-parent-has-gone"} {
		t.Run(name, func(t *testing.T) {
			const minLife = 3 * time.Second // in which it is found too large while it is idle
			p := keep(t, pool.Config{Size: 1, MinIdle: 1, MaxMemory: limit, MinLife: minLife}, name)
			eventually(t, "measured hoard", func() bool { return p.Children()[0].Memory > hoard })
			l := acquire(t, p)
			t.Cleanup(l.Release)
			eventually(t, "worn child", func() bool { return p.Children()[0].Worn == pool.Memory })
			if got, err := complete(t.Context(), l, "in peace"); err != nil || got != "in peace" {
				t.Errorf("%q, %v", got, err)
			}
			l.Release()
			eventually(t, "replacement", func() bool { return len(p.Deaths()) == 1 && p.Stat().Idle == 1 })
			eventually(t, "measure of it", func() bool { return p.Stat().Memory > 0 })
			if d := p.Deaths()[0]; d.Why != pool.Memory || d.Age < minLife || d.Err != nil {
				t.Errorf("death %+v", d)
			}
			if s := p.Stat(); s.Memory > limit || s.Worn != 0 {
				t.Errorf("the next: %+v", s)
			}
		})
	}
}

func TestMaxMemoryEndsATurnInWhichAChildOutgrowsIt(t *testing.T) {
	p := begin(t, pool.Config{Size: 1, MinIdle: 1, MaxMemory: limit, MinLife: time.Hour}, "hoards")
	l := acquire(t, p) // in line before it is born, so that it is first measured in its turn
	eventually(t, "end of the child", func() bool { _, err := complete(t.Context(), l, "x"); return err != nil })
	l.Release()
	eventually(t, "replacement", func() bool { return len(p.Deaths()) == 1 && p.Stat().Idle == 1 })
	if d := p.Deaths()[0]; d.Why != pool.Memory || d.Err == nil {
		t.Errorf("death %+v", d)
	}
}

func TestMemoryIsMeasuredWithoutALimit(t *testing.T) {
	p := keep(t, pool.Config{Size: 1, MinIdle: 1}, "hoards")
	eventually(t, "measured hoard", func() bool { return p.Stat().Memory > hoard })
	if s := p.Stat(); s.Worn != 0 || s.Largest != s.Memory {
		t.Errorf("%+v", s)
	}
}

func TestMemoryIsTheSameWhereTheMachineSwaps(t *testing.T) {
	pid := keep(t, pool.Config{Size: 1, MinIdle: 1}, "hoards").Children()[0].Pid
	eventually(t, "hoard", func() bool { return pool.PrivateOfStatm(pid) > hoard })
	eventually(t, "same figure", func() bool { // it may still grow
		statm, status := pool.PrivateOfStatm(pid), pool.PrivateOfStatus(pid)
		return status > hoard && max(statm, status)-min(statm, status) < hoard/100
	})
	const nobody = 1 << 30
	if statm, status := pool.PrivateOfStatm(nobody), pool.PrivateOfStatus(nobody); statm != 0 || status != 0 {
		t.Errorf("%d and %d bytes of no process", statm, status)
	}
}

func TestKilledChildrenAreReplacedSoonHoweverOften(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "asked to leave": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			p := keep(t, pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1, BackoffMax: time.Hour}, "serve")
			for range 10 {
				pid, killed := p.Children()[0].Pid, time.Now()
				syscall.Kill(pid, signal)
				eventually(t, "death", func() bool { c := p.Children(); return len(c) == 0 || c[0].Pid != pid })
				acquire(t, p).Release() // nobody is told that there is no hope
				if took := time.Since(killed); took < pause {
					t.Errorf("replaced after %v: what kills children could keep the machine busy", took)
				}
				eventually(t, "full pool", func() bool { return p.Stat().Idle == 1 })
			}
		})
	}
}
