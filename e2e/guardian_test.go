package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A run that panics or is killed ends without its cleanups. So each run has a
// guardian: this test binary once more, which waits for the end of the run and
// then kills its daemons with all their descendants, and removes its folders.
const (
	guardianVar = "CODEXPOOL_E2E_GUARDIAN" // the mark of the run; its arguments are folders
	markVar     = "CODEXPOOL_E2E_RUN"      // the mark, in the environment of each daemon
)

var (
	runMark = rand.Text() // differs from run to run

	// runPipe is open for as long as this process runs: the system closes it at the
	// end, however the process ends. No other process has it.
	runPipe *os.File
)

// startGuardian starts the guardian of this run, which removes these folders too.
func startGuardian(folders ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	end, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	cmd := exec.Command(self, folders...)
	cmd.Env = []string{guardianVar + "=" + runMark}
	cmd.Stdin, cmd.Stderr = end, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // CTRL-C is for the run
	runPipe = pipe
	return cmd.Start()
}

// guard runs the guardian.
func guard(mark string, folders []string) {
	io.Copy(io.Discard, os.Stdin) // returns when the run has ended
	for range 500 {
		left := family(mark)
		if len(left) == 0 {
			break
		}
		fmt.Fprintln(os.Stderr, "killing processes that the tests did not stop:", processNames(left))
		killFamily(mark)
		time.Sleep(10 * time.Millisecond) // they are not our children: there is nothing to wait on
	}
	for _, folder := range folders {
		os.RemoveAll(folder)
	}
}

// killFamily freezes the whole family of a run before it kills any process of it, so
// that none starts another, and none loses the parent by which it is found.
func killFamily(mark string) {
	stopped := map[int]bool{}
	for grew := true; grew; {
		grew = false
		for _, pid := range family(mark) {
			if !stopped[pid] {
				stopped[pid], grew = true, true
				syscall.Kill(pid, syscall.SIGSTOP)
			}
		}
	}
	for pid := range stopped {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// family returns the pids of a run's daemons, of all their descendants, and of the
// processes in a group that one of these leads: each child leads a group.
func family(mark string) (pids []int) {
	type process struct {
		parent, group int
		member        bool
	}
	processes := map[int]*process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, parent, group
		if err != nil || len(fields) < 3 || fields[0] == "Z" {
			continue
		}
		environ, _ := os.ReadFile(dir + "/environ")
		pid, _ := strconv.Atoi(filepath.Base(dir))
		parent, _ := strconv.Atoi(fields[1])
		group, _ := strconv.Atoi(fields[2])
		processes[pid] = &process{parent, group, slices.Contains(strings.Split(string(environ), "\x00"), markVar+"="+mark)}
	}
	member := func(pid int) bool { p := processes[pid]; return p != nil && p.member }
	for grew := true; grew; {
		grew = false
		for _, p := range processes {
			if !p.member && (member(p.parent) || member(p.group)) {
				p.member, grew = true, true
			}
		}
	}
	for pid, p := range processes {
		if p.member {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// processNames shows processes with what they run.
func processNames(pids []int) string {
	var list []string
	for _, pid := range pids {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		list = append(list, fmt.Sprint(pid, " ", strings.TrimSpace(string(comm))))
	}
	return strings.Join(list, ", ")
}

// survivors returns the processes that outlive all tests. It gives those that were
// just killed two seconds to end.
func survivors() (pids []int) {
	for range 100 {
		if pids = family(runMark); len(pids) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond) // not all of them are our children
	}
	return pids
}

const panicVar = "CODEXPOOL_E2E_PANIC" // makes TestPanicStopsEveryDaemonOfTheRun panic

// TestPanicStopsEveryDaemonOfTheRun runs this test binary again, which panics while it
// has daemons whose children do not end by themselves.
func TestPanicStopsEveryDaemonOfTheRun(t *testing.T) {
	if os.Getenv(panicVar) != "" {
		panicWithDaemons(t)
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), panicVar+"=1", programVar+"="+program)
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("panic: a bug in a test")) {
		t.Fatalf("it did not panic: %v\n%s", err, out)
	}
	pids := regexp.MustCompile(`(?m)^process (\d+)$`).FindAllSubmatch(out, -1)
	folders := regexp.MustCompile(`(?m)^folder (.+)$`).FindAllSubmatch(out, -1)
	if len(pids) < 5 || len(folders) != 3 { // two daemons, two children, one orphan
		t.Fatalf("%d processes and %d folders: this test proves nothing\n%s", len(pids), len(folders), out)
	}
	t.Cleanup(func() {
		for _, match := range pids { // should the guardian have failed
			pid, _ := strconv.Atoi(string(match[1]))
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	for _, match := range pids {
		pid, _ := strconv.Atoi(string(match[1]))
		eventually(t, 10*time.Second, fmt.Sprint("end of process ", pid), func() bool {
			state, _ := stateOf(fmt.Sprint("/proc/", pid))
			return state == "" || state == "Z"
		})
	}
	for _, match := range folders {
		eventually(t, 10*time.Second, fmt.Sprintf("end of folder %s", match[1]), func() bool {
			_, err := os.Stat(string(match[1]))
			return os.IsNotExist(err)
		})
	}
}

func panicWithDaemons(t *testing.T) {
	for _, fault := range []string{"ignores EOF and TERM", "has an orphan"} {
		f := newFaulty(t)
		f.set(fault)
		d := start(t, "POOL_SIZE=1", "CODEX_BIN="+f.path)
		fmt.Println("folder", d.workdir)
	}
	fmt.Println("folder", t.TempDir())
	for _, pid := range family(runMark) {
		fmt.Println("process", pid)
	}
	// In a goroutine of its own: a test's own panic still runs its cleanups.
	go panic("a bug in a test")
	select {}
}
