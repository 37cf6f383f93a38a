package e2e

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMystery is an exercise: it brings about the trouble of one drill, of which SEED=n is
// the choice, and tells only what whoever is on call would be told. It is over with a line of
// its input, with a signal, or after half an hour. Then it says what it was.
// make mystery runs it.
func TestMystery(t *testing.T) {
	if os.Getenv("MYSTERY") == "" {
		t.Skip("make mystery runs it")
	}
	seed := chosenSeed(t)
	tr := mysteryOf(seed)
	c, p := newControlRoom(t), newPatient(t, tr)
	fmt.Printf("SEED=%d: trouble comes, and its alert within five minutes.\n", seed)
	defer c.fall(p, t.Name())()
	over, forget := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer forget()
	c.tellUntil(over, p, p.handOver())
	fmt.Printf("\nIt was cause %d of %s: %s\n", tr.cause, tr.page, causeOf(t, tr))
}

func mysteryOf(seed uint64) trouble {
	all := drills()
	return all[rand.New(rand.NewPCG(seed, 0)).IntN(len(all))]
}

// TestDrillMystery plays one to its end. make drill runs it.
func TestDrillMystery(t *testing.T) {
	if os.Getenv("DRILL") == "" {
		t.Skip("make drill runs it")
	}
	t.Parallel()
	var seed uint64
	for ; mysteryOf(seed).alert != "CodexpoolUnavailable"; seed++ {
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMystery$")
	cmd.Env = append(os.Environ(), "MYSTERY=1", fmt.Sprint("SEED=", seed), programVar+"="+program)
	cmd.Stdin = strings.NewReader("\n") // which it reads only after the alert
	out, err := cmd.CombinedOutput()
	told, answer, ok := strings.Cut(string(out), "\nIt was ")
	if err != nil || !ok || !strings.HasPrefix(answer, "cause 1 of Unavailable.md: It was drained, and forgotten") {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(told, "\nCodexpoolUnavailable (critical): No replica is ready\n  https://") || strings.Contains(told, "drain") {
		t.Errorf("before the end it says\n%s", told)
	}
	env := regexp.MustCompile(`\S+/env\n`).FindString(told)
	if env == "" {
		t.Errorf("it does not say what an operator's shell needs:\n%s", told)
	}
}

// handOver writes what an operator's shell needs, and prints how to use it. log is the file
// that must have the daemon's log.
func (p *patient) handOver() (log string) {
	p.t.Helper()
	dir := p.t.TempDir()
	log = filepath.Join(dir, "log")
	settings := map[string]string{}
	for _, entry := range p.cmd.Env { // the last of a name holds
		if name, value, _ := strings.Cut(entry, "="); regexp.MustCompile(`^(PORT$|(PROXY|POOL|CODEX|LOG)_)`).MatchString(name) {
			settings[name] = value
		}
	}
	maps.Copy(settings, map[string]string{
		"PORT": portOf(p.url), "PROXY_ADMIN_ADDR": strings.TrimPrefix(p.admin, "http://"),
		"KEY": key, "LOG": log, "EDGE": p.asUser().url,
	})
	var file strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&file, "export %s='%s'\n", name, strings.ReplaceAll(settings[name], "'", `'\''`))
	}
	fmt.Fprintf(&file, "export PATH='%s':\"$PATH\"\n", filepath.Dir(program))
	write(p.t, filepath.Join(dir, "env"), file.String())
	fmt.Printf(`
In another shell of this machine, first:  . %s/env
It puts codexpool on the PATH. Then codexpool pool, metrics, health and runbook ask this daemon; codexpool serve would start it again.
The log is in $LOG, a client's key in $KEY, and users come to $EDGE. In the commands of the pages,
127.0.0.1:11435 is 127.0.0.1:%s, and 127.0.0.1:11436 is %s.

`, dir, settings["PORT"], settings["PROXY_ADMIN_ADDR"])
	return log
}

// tellUntil prints each alert once, as it comes, and keeps the file of the log current.
func (c *controlRoom) tellUntil(over context.Context, p *patient, log string) {
	told, enough := map[string]bool{}, make(chan struct{})
	for limit := time.After(30 * time.Minute); ; {
		write(p.t, log, p.logged())
		for name, m := range c.told(p.t.Name()) {
			if told[name] {
				continue
			}
			fmt.Printf("%s (%s): %s\n  %s\n", name, m.severity, m.summary, m.link)
			if told[name] = true; len(told) == 1 {
				fmt.Println("  Enter, or CTRL-C, when you know what it is.")
				go func() { // ends with a line, with the input, or with this program
					if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
						close(enough)
					}
				}()
			}
		}
		select {
		case <-over.Done():
			return
		case <-enough:
			return
		case <-limit:
			return
		case <-time.After(200 * time.Millisecond): // Alertmanager is another process
		}
	}
}

// causeOf is what the page calls the cause.
func causeOf(t *testing.T, tr trouble) string {
	t.Helper()
	cause := regexp.MustCompile(fmt.Sprintf(`(?s)\n%d\. \*\*(.*?)\*\*`, tr.cause)).FindStringSubmatch(section(t, tr.page, "Causes"))
	if cause == nil {
		t.Fatalf("%s has no cause %d", tr.page, tr.cause)
	}
	return strings.Join(strings.Fields(cause[1]), " ")
}

// TestTroublesHaveACauseOnTheirPage: the mystery tells it.
func TestTroublesHaveACauseOnTheirPage(t *testing.T) {
	for _, tr := range troubles {
		if causeOf(t, tr) == "" {
			t.Errorf("%s: cause %d has no name", tr.page, tr.cause)
		}
	}
}
