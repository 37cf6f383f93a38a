package e2e

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// capacityOf is what codexpool capacity prints of the daemon, which it watches while
// something happens.
func (d *daemon) capacityOf(happens func()) string {
	d.t.Helper()
	cmd := exec.Command(program, "capacity", "--from", d.admin)
	cmd.Env = []string{markVar + "=" + runMark}
	var out strings.Builder
	cmd.Stdout = &out
	says, err := cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	said := bufio.NewReader(says)
	if line, err := said.ReadString('\n'); err != nil || !strings.HasPrefix(line, "watching it ") {
		d.t.Errorf("it does not watch: %q, %v", line, err)
	}
	happens()
	cmd.Process.Signal(os.Interrupt)
	rest, _ := io.ReadAll(said)
	if err := cmd.Wait(); err != nil || len(rest) > 0 {
		d.t.Errorf("capacity --from: %v, %s", err, rest)
	}
	return out.String()
}

// TestCapacityNamesTheBottleneckOfADaemon has it watch daemons that something holds up.
func TestCapacityNamesTheBottleneckOfADaemon(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		env     []string
		files   int  // limit of descriptors, 0 = as it is
		quiet   bool // it needs a machine that does nothing else, as make capacity does
		happens func(t *testing.T, d *daemon, provider *moody)
		want    string
	}{
		"one request": {
			happens: func(t *testing.T, d *daemon, _ *moody) { d.stream("hi") },
			want:    "none",
		},
		"a slow provider, and more requests than children": {
			happens: func(t *testing.T, d *daemon, provider *moody) {
				provider.be(mute)
				d.keepBusy("hi", 3)
				eventually(t, time.Minute, "request that waits", func() bool { return d.metrics()["codexpool_pool_waiting"] == 1 })
			},
			want: "children: see codexpool runbook PoolSaturated",
		},
		"the same without a queue": {
			env: []string{"POOL_MAX_WAITING=0"},
			happens: func(t *testing.T, d *daemon, provider *moody) {
				provider.be(mute)
				d.keepBusy("hi", 3)
				eventually(t, time.Minute, "request that was turned away", func() bool { return d.total("codexpool_pool_acquires_total", `outcome="full"`) == 1 })
			},
			want: "children: see codexpool runbook PoolSaturated",
		},
		"answers with 429": {
			happens: func(t *testing.T, d *daemon, provider *moody) {
				provider.be(fail(429))
				d.stream("hi")
			},
			want: "the provider's limit (answers with 429): see codexpool runbook UpstreamLimits",
		},
		"clients that keep their connections": {
			files: 128, // of which 44 are for clients
			happens: func(t *testing.T, d *daemon, _ *moody) {
				for range 42 {
					conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { conn.Close() })
				}
				eventually(t, time.Minute, "connection of each", func() bool { return d.metrics()[openConnections] >= 42 })
			},
			want: "connections: see codexpool runbook FileDescriptors",
		},
		"a limit of descriptors that was lowered": {
			happens: func(t *testing.T, d *daemon, _ *moody) {
				limitFiles(t, d.cmd.Process.Pid, uint64(1.2*d.metrics()["process_open_fds"]))
			},
			want: "descriptors: see codexpool runbook FileDescriptors",
		},
		"streams up to their limit": {
			env: []string{"PROXY_SSE_MAX_CONCURRENCY=1"},
			happens: func(t *testing.T, d *daemon, provider *moody) {
				provider.be(mute)
				d.keepBusy("hi", 1)
				eventually(t, time.Minute, "stream", func() bool { return d.total("codexpool_sse_streams") == 1 })
			},
			want: "streams: see codexpool runbook StreamsNearLimit",
		},
		"as many requests as one core can do": {
			env:   []string{"GOMAXPROCS=1", "POOL_SIZE=4"},
			quiet: true,
			happens: func(t *testing.T, d *daemon, _ *moody) {
				d.spread(200, 8, func(int) error {
					_, err := d.stream("hi")
					return err
				})
			},
			want: "CPU (its own and its children's): see codexpool runbook MachineStarved",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.quiet && os.Getenv("CAPACITY") == "" {
				t.Skip("make capacity runs it")
			}
			binary := program
			if tt.files > 0 {
				binary = withFiles(t, tt.files)
			}
			provider := newMoody(t)
			d := startProgram(t, binary, append([]string{"POOL_SIZE=2", "CODEX_UPSTREAM=" + provider.URL + "/v1"}, tt.env...)...)
			out := d.capacityOf(func() { tt.happens(t, d, provider) })
			if got := regexp.MustCompile(`(?m)^bottleneck: (.*)$`).FindStringSubmatch(out); got == nil || got[1] != tt.want {
				t.Errorf("it does not say that it is %s:\n%s", tt.want, out)
			}
		})
	}
}
