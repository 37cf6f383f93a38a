package e2e

import (
	"net"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"codexpool/codex/codextest"
)

// oneWay is half of the round trip to the provider.
const oneWay = 20 * time.Millisecond

// BenchmarkFarProvider measures what the relay gains before a TLS provider
// that is a round trip of 40 ms away: the time to the first token through the
// daemon, beside the same lean child that calls the provider itself with the
// system's roots, and the CPU time of each child for a completion.
func BenchmarkFarProvider(b *testing.B) {
	server, roots := secure(b, codextest.NewUpstream(b, codextest.Text("token")), true)
	far := "https://" + delayed(b, server.Listener.Addr().String()) + "/v1"

	d := start(b, "POOL_SIZE=1", "CODEX_UPSTREAM="+far, "SSL_CERT_FILE="+roots)
	cmd := codextest.Real(b, far)
	cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+roots)
	child := warmChild(b, cmd)
	defer child.Close()
	ours := d.children()[0]

	var relayed, direct []time.Duration
	cpuOurs, cpuChild := cpu(b, ours), cpu(b, child.Pid())
	for b.Loop() {
		relayed = append(relayed, d.firstToken(b, helloBody))
		direct = append(direct, firstToken(b, child, codextest.UserItem("hello")))
	}
	n := time.Duration(len(direct))
	cpuOurs, cpuChild = (cpu(b, ours)-cpuOurs)/n, (cpu(b, child.Pid())-cpuChild)/n
	r, c := median(relayed), median(direct)
	b.ReportMetric(0, "ns/op") // the time of a whole round means nothing
	b.ReportMetric(ms(r), "ms-relay")
	b.ReportMetric(ms(c), "ms-direct")
	b.ReportMetric(ms(c-r)/ms(2*oneWay), "round-trips-saved")
	b.ReportMetric(ms(cpuOurs), "cpu-ms-relay")
	b.ReportMetric(ms(cpuChild), "cpu-ms-direct")
	b.ReportMetric(ms(cpuOurs)/ms(cpuChild), "cpu-relay/direct")
}

// delayed is the address of a proxy to addr that holds back every byte, and every
// end, for oneWay.
func delayed(b *testing.B, addr string) string {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { listener.Close() })
	go func() { // ends with the listener
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connections
				time.Sleep(2 * oneWay) // the handshake of TCP, which loopback has done already
				far, err := net.Dial("tcp", addr)
				if err != nil {
					near.Close()
					return
				}
				go hold(far, near)
				hold(near, far)
			}()
		}
	}()
	return listener.Addr().String()
}

// hold copies from one connection to the other, each piece oneWay later.
func hold(to, from net.Conn) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if n > 0 {
				pieces <- piece{time.Now().Add(oneWay), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	to.Close()
	from.Close()
	for range pieces { // until the reader has ended
	}
}

// cpu is the CPU time that processes have used so far, on all their threads.
func cpu(b testing.TB, pids ...int) (sum time.Duration) {
	b.Helper()
	for _, pid := range pids {
		sum += cpuOf(b, pid)
	}
	return sum
}

// cpuOf reads the CPU clock of a process: /proc/PID/stat counts in ticks of 10 ms,
// which is as long as some completions.
func cpuOf(b testing.TB, pid int) time.Duration {
	b.Helper()
	clock := int32(^pid<<3 | 2) // as clock_getcpuclockid(3) computes it
	var now syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&now)), 0); errno != 0 {
		b.Fatalf("CPU clock of process %d: %v", pid, errno)
	}
	return time.Duration(now.Nano())
}
