package pool_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
)

// What these tests are about only a process has: death by a signal.

func TestMain(m *testing.M) {
	codextest.Main(m, map[string]func(){
		"serve": func() { serve() },
	})
}

func serve() {
	codextest.Play(codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{})})
}

const pause = 50 * time.Millisecond

// keep starts a pool of processes, with hooks that tell their pids.
func keep(t *testing.T, cfg pool.Config) (_ *pool.Pool, pids <-chan int) {
	t.Helper()
	born := make(chan int, 100)
	cfg.Log, cfg.UpkeepEvery, cfg.BackoffMin = codextest.Log(t), 10*time.Millisecond, pause
	cfg.Spawn = func(ctx context.Context) (*codex.Client, error) {
		c, err := codex.Start(ctx, codextest.Command(t, "serve"))
		if err == nil {
			born <- c.Pid()
		}
		return c, err
	}
	p, err := pool.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	eventually(t, "a full pool", func() bool { return p.Stat().Idle == cfg.Size })
	return p, born
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

func TestChildrenThatOthersKillAreReplacedSoonHoweverOften(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "asked to leave": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			p, pids := keep(t, pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1, BackoffMax: time.Hour})
			for range 10 {
				pid, killed := <-pids, time.Now()
				syscall.Kill(pid, signal)
				eventually(t, "death", func() bool { return p.Stat().Alive == 0 })
				acquire(t, p).Release() // nobody is told that there is no hope
				if took := time.Since(killed); took < pause {
					t.Errorf("replaced after %v: what kills children could keep the machine busy", took)
				}
				eventually(t, "full pool", func() bool { return p.Stat().Idle == 1 })
			}
		})
	}
}
