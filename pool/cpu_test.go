package pool_test

import (
	"syscall"
	"testing"
	"time"

	"codexpool/pool"
)

// spun is the CPU time that a child takes before it serves.
const spun = 200 * time.Millisecond

func spin() {
	for used := time.Duration(0); used < spun; {
		var now syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &now); err != nil {
			panic(err)
		}
		used = time.Duration(now.Utime.Nano() + now.Stime.Nano())
	}
}

// TestCPUIsThatOfTheLivingAndOfTheDead looks at a child while it lives, or only after its
// end: /proc then has nothing of it.
func TestCPUIsThatOfTheLivingAndOfTheDead(t *testing.T) {
	const most = 10 * spun // the next child spins not; what both take to start depends on the machine
	for _, looks := range []bool{true, false} {
		p := keep(t, pool.Config{Size: 1, MinIdle: 1}, "spins")
		var before time.Duration
		if looks {
			if before = p.CPU(); before < spun-30*time.Millisecond || before > most { // /proc has four figures, each in whole ticks
				t.Errorf("%v of a child that lives", before)
			}
		}
		syscall.Kill(p.Children()[0].Pid, syscall.SIGKILL)
		eventually(t, "death", func() bool { return len(p.Deaths()) == 1 })
		if after := p.CPU(); after < max(before, spun) || after > most {
			t.Errorf("%v after its death, %v before", after, before)
		}
	}
}
