package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCommandsForOperatorsNeedNothingButTheProgram runs them in a root that holds the
// program alone, as a container without a shell does, beside a daemon with a stream.
func TestCommandsForOperatorsNeedNothingButTheProgram(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(root, "codexpool"), "./cmd/codexpool")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0") // as in the image
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=100")
	d.keepBusy(strings.Repeat("word ", 1000), 1)
	eventually(t, time.Minute, "turn", func() bool { return d.pool().in("leased") == 1 })
	alone := func(args ...string) (string, error) {
		cmd := exec.Command("unshare", append([]string{"-r", "chroot", root, "/codexpool"}, args...)...)
		_, port, _ := strings.Cut(strings.TrimPrefix(d.url, "http://"), ":")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PORT=" + port, "PROXY_ADMIN_ADDR=" + strings.TrimPrefix(d.admin, "http://")}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := alone("version"); err != nil && !strings.Contains(out, "codexpool ") {
		t.Skip("this machine has no user namespaces: ", err)
	}
	for command, want := range map[string]string{
		"health":                      `{"ready":true}`,
		"pool":                        "\nfailure: none\ndeaths: none\n",
		"pool --json":                 `"state": "leased",`,
		"metrics pool_size":           "codexpool_pool_size 2\n",
		"runbook":                     "# Runbooks\n",
		"runbook Down":                "# The daemon does not answer\n",
		"capacity --rps 1 --hold 0.5": "POOL_SIZE=2 ",
	} {
		if out, err := alone(strings.Fields(command)...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	out, _ := alone("pool", "--json")
	var page struct {
		Children []struct{ Turn *struct{ Request string } }
	}
	if err := json.Unmarshal([]byte(out), &page); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for _, c := range page.Children {
		if c.Turn == nil {
			continue
		}
		if table, _ := alone("pool"); !strings.Contains(table, " "+c.Turn.Request) {
			t.Errorf("the table does not show the request %s:\n%s", c.Turn.Request, table)
		}
	}
}
