package codex

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// Command is how to run one child. The child inherits nothing else.
type Command struct {
	Path string   // the CLI's native binary; see [Locate]
	Args []string // without the program's name; usually "app-server"

	// Home is the child's private folder, which must not exist yet. It is made
	// before the start (mode 0700) and removed once the child is gone. HOME,
	// CODEX_HOME, CODEX_SQLITE_HOME and the working directory lie in it: Codex
	// watches them, and children that share one use up CPU for each other. It must
	// not be below /tmp, where Codex does not use its helper binaries.
	Home string

	Files map[string][]byte // written into CODEX_HOME before the start, mode 0600
	Env   []string          // complete but for the variables named at Home

	CallTimeout time.Duration // bounds each call but the handshake; 0 means 10 s
	StopGrace   time.Duration // bounds each step of stopping; 0 means 2 s

	// Direct is for a child that calls the provider itself. Codex may ask it for more than
	// one answer in a turn; after the eighth the turn is over.
	Direct bool

	// KeepHome is for a child whose files are needed after its end. Home is not
	// removed; from then on it is the caller's. And such a child is never killed at
	// once: also where it does not answer, it has two times StopGrace to finish what
	// it writes.
	KeepHome bool

	// ExtraFiles are open in the child too, the first as file descriptor 3. They
	// remain the caller's to close.
	ExtraFiles []*os.File

	Exited func()       // if not nil, called once when the child is gone, also after a failed Start
	Log    *slog.Logger // must not be nil
}

// CodexHome is the child's CODEX_HOME: where Files are written.
func (c Command) CodexHome() string { return filepath.Join(c.Home, "codex") }

// workdir is the child's working directory.
func (c Command) workdir() string { return filepath.Join(c.Home, "work") }

// process is a child with its pipes, in a process group of its own.
type process struct {
	cmd     *exec.Cmd
	stdin   *os.File
	stdout  *os.File
	stderr  tail
	grace   time.Duration
	patient bool   // never kill it at once: see Command.KeepHome
	remove  func() // removes the home, calls Command.Exited
	log     *slog.Logger

	exited chan struct{} // closed by wait: reaped, its group killed
	status string        // how it ended; set before exited is closed, as is the next
	cpu    time.Duration // of the process and of those that it waited for
}

// spawn starts c. After an error no process, no pipe and no home of it remain.
func spawn(c Command) (_ *process, err error) {
	p := &process{grace: cmp.Or(c.StopGrace, 2*time.Second), patient: c.KeepHome, log: c.Log, exited: make(chan struct{})}
	made := false
	p.remove = func() {
		if made && !c.KeepHome {
			if err := os.RemoveAll(c.Home); err != nil {
				c.Log.Warn("child home not removed", "err", err)
			}
		}
		if c.Exited != nil {
			c.Exited()
		}
	}
	defer func() {
		if err != nil {
			p.remove()
			err = fmt.Errorf("codex start: %w", err)
		}
	}()

	if err := os.MkdirAll(filepath.Dir(c.Home), 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(c.Home, 0o700); err != nil {
		return nil, err
	}
	made = true
	if err := furnish(c); err != nil {
		return nil, err
	}
	return p, p.start(c)
}

// start starts the child with pipes of our own: StdoutPipe loses output when Wait
// comes early.
func (p *process) start(c Command) error {
	childIn, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	defer childIn.Close()
	stdout, childOut, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return err
	}
	defer childOut.Close()

	p.stdin, p.stdout = stdin, stdout
	p.cmd = &exec.Cmd{
		Path:        c.Path,
		Args:        append([]string{c.Path}, c.Args...),
		Dir:         c.workdir(),
		Env:         append(c.Env[:len(c.Env):len(c.Env)], "HOME="+c.Home, "CODEX_HOME="+c.CodexHome(), "CODEX_SQLITE_HOME="+c.CodexHome()),
		Stdin:       childIn,
		Stdout:      childOut,
		Stderr:      &p.stderr,
		ExtraFiles:  c.ExtraFiles,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		WaitDelay:   500 * time.Millisecond, // a grandchild that holds stderr must not hold Wait
	}
	if err := p.cmd.Start(); err != nil {
		stdin.Close()
		stdout.Close()
		return err
	}
	return nil
}

// furnish makes the folders and files in the child's home, all private.
func furnish(c Command) error {
	for _, dir := range []string{c.CodexHome(), c.workdir()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	for name, data := range c.Files {
		if err := os.WriteFile(filepath.Join(c.CodexHome(), name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) Read(b []byte) (int, error)  { return p.stdout.Read(b) }
func (p *process) Write(b []byte) (int, error) { return p.stdin.Write(b) }

// Close ends the child's input, at which a healthy child exits (35 ms).
func (p *process) Close() error { return p.stdin.Close() }

// stop returns once the child is reaped. now skips the polite steps, but not for a
// patient process. Several goroutines may call it.
func (p *process) stop(now bool) {
	p.stdin.Close()
	select {
	case <-p.exited:
		return
	default:
	}
	if (!now || p.patient) && (p.gone() || p.gone(syscall.SIGTERM)) {
		return
	}
	p.kill()
	<-p.exited
}

// kill does not wait for the end.
func (p *process) kill() {
	select {
	case <-p.exited: // the number of its group may belong to others by now
	default:
		p.signal(syscall.SIGKILL)
	}
}

// gone sends sig to the group, if one is given, and reports whether the child ends
// within its grace.
func (p *process) gone(sig ...syscall.Signal) bool {
	for _, s := range sig {
		p.signal(s)
	}
	select {
	case <-p.exited:
		return true
	case <-time.After(p.grace):
		return false
	}
}

// signal reaches the whole process group: grandchildren of old versions of the CLI
// survive their parent.
func (p *process) signal(sig syscall.Signal) { syscall.Kill(-p.cmd.Process.Pid, sig) }

// wait reaps the child and kills the rest of its group. While the group has a
// member, its number cannot belong to strangers. An empty group's number could be
// given to another, but only after all other numbers.
func (p *process) wait() {
	err := p.cmd.Wait()
	p.signal(syscall.SIGKILL)
	p.status = "exit status 0"
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		p.status = exit.Error()
	} else if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		p.status = err.Error()
	}
	if end := p.cmd.ProcessState; end != nil {
		p.cpu = end.UserTime() + end.SystemTime()
	}
	close(p.exited)
	// A grandchild outside the group that still holds stdout must not hold the reader.
	p.stdout.SetReadDeadline(time.Now().Add(p.grace))
}

// cleanup is called once the reader has ended.
func (p *process) cleanup() {
	p.stdin.Close()
	p.stdout.Close()
	p.remove()
}

const (
	tailLines = 20
	tailWidth = 512 // bytes of a line
)

// tail keeps the last lines written to it, however much that was.
type tail struct {
	mu   sync.Mutex
	last []string // guarded by mu
	part []byte   // a line that has not ended; guarded by mu
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range b {
		if c == '\n' {
			t.flush()
		} else if len(t.part) < tailWidth {
			t.part = append(t.part, c)
		}
	}
	return len(b), nil
}

// flush ends a line. The caller holds mu.
func (t *tail) flush() {
	t.last = t.kept()
	t.part = t.part[:0]
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept()
}

// kept is the last lines with the part of one that has not ended. The caller holds mu.
func (t *tail) kept() []string {
	line := plain(colors.ReplaceAllString(string(t.part), ""))
	if line == "" || noise(line) {
		return slices.Clone(t.last)
	}
	first := max(0, len(t.last)+1-tailLines)
	return append(slices.Clone(t.last[first:]), line)
}

// colors are what a terminal reads as such; the CLI writes them into any file.
var colors = regexp.MustCompile("\x1b\\[[0-9;]*m")

// plain is a child's text in one line, without what would move the cursor of a terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// noise reports whether a line of the CLI says nothing about a fault: that about the
// sandbox of shell commands, which a lean child does not run, and Rust's advice.
func noise(line string) bool {
	return strings.Contains(line, "bubblewrap") || strings.HasPrefix(line, "note: run with `RUST_BACKTRACE")
}
