package codex

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command says how to run one child. Nothing is inherited.
type Command struct {
	Path string   // the CLI's native binary; see [Locate]
	Args []string // without the program's name; usually "app-server"

	// Home is a folder of the child's own, which must not exist yet. It is made
	// before the start (mode 0700) and removed once the child is gone. HOME,
	// CODEX_HOME, CODEX_SQLITE_HOME and the working directory lie in it: Codex
	// watches them, and children that share one burn CPU for each other. Not
	// below /tmp, where Codex refuses its helper binaries.
	Home string

	Files map[string][]byte // written into CODEX_HOME before the start, mode 0600
	Env   []string          // complete but for the variables named at Home

	StopGrace time.Duration // for each step of stopping; 0 means 2 s
	Exited    func()        // if not nil, called once when nothing of the child is left, also after a failed Start
	Log       *slog.Logger

	// lock makes the child the keeper of a login (see [Login]), whose work must
	// not be lost: it holds the file too, so that a lock on it lives as long as the
	// child; a call may take as long as its context; it is always asked to leave
	// before it is killed; and its home stays.
	lock *os.File
}

// CodexHome is the child's CODEX_HOME: where Files are written.
func (c Command) CodexHome() string { return filepath.Join(c.Home, "codex") }

// process is a child with its pipes, in a process group of its own.
type process struct {
	cmd    *exec.Cmd
	stdin  *os.File
	stdout *os.File
	stderr tail
	grace  time.Duration
	keeper bool
	remove func() // removes the home, calls Command.Exited
	log    *slog.Logger

	exited chan struct{} // closed by wait: reaped, its group killed
	status string        // how it ended; set before exited is closed
}

// spawn starts cmd. On error nothing is left behind.
func spawn(c Command) (_ *process, err error) {
	p := &process{grace: c.StopGrace, keeper: c.lock != nil, log: c.Log, exited: make(chan struct{})}
	if p.grace == 0 {
		p.grace = 2 * time.Second
	}
	made := false
	p.remove = func() {
		if !made || p.keeper {
			// somebody else's, or not there, or kept
		} else if err := os.RemoveAll(c.Home); err != nil {
			c.Log.Warn("child home not removed", "err", err)
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
	work := filepath.Join(c.Home, "work")
	if err := furnish(c, work); err != nil {
		return nil, err
	}
	// Pipes of our own: StdoutPipe loses output when Wait comes early.
	childIn, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	stdout, childOut, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return nil, err
	}
	defer childOut.Close()

	p.stdin, p.stdout = stdin, stdout
	p.cmd = &exec.Cmd{
		Path:        c.Path,
		Args:        append([]string{c.Path}, c.Args...),
		Dir:         work,
		Env:         append(c.Env[:len(c.Env):len(c.Env)], "HOME="+c.Home, "CODEX_HOME="+c.CodexHome(), "CODEX_SQLITE_HOME="+c.CodexHome()),
		Stdin:       childIn,
		Stdout:      childOut,
		Stderr:      &p.stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		WaitDelay:   500 * time.Millisecond, // a grandchild that holds stderr must not hold Wait
	}
	if p.keeper {
		p.cmd.ExtraFiles = []*os.File{c.lock}
	}
	if err := p.cmd.Start(); err != nil {
		stdin.Close()
		stdout.Close()
		return nil, err
	}
	return p, nil
}

// furnish makes the folders and files in the child's home, all private.
func furnish(c Command, work string) error {
	for _, dir := range []string{c.CodexHome(), work} {
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

// Close ends the child's input, which asks a healthy one to leave (35 ms).
func (p *process) Close() error { return p.stdin.Close() }

// stop returns once the child is reaped. Several may call it.
func (p *process) stop(now bool) {
	p.stdin.Close()
	select {
	case <-p.exited:
		return
	default:
	}
	if (!now || p.keeper) && (p.gone() || p.gone(syscall.SIGTERM)) {
		return
	}
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// gone sends sig to the group, if one is given, and gives the child its grace.
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

// signal reaches the whole process group: old versions of the CLI leave
// grandchildren behind.
func (p *process) signal(sig syscall.Signal) { syscall.Kill(-p.cmd.Process.Pid, sig) }

// wait reaps the child and kills what is left of its group. While a member is
// left the group's number cannot belong to strangers. With none left it could be
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
	close(p.exited)
	// Whoever left the group and still holds stdout does not hold the reader.
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
	if len(t.last) == tailLines {
		t.last = append(t.last[:0], t.last[1:]...)
	}
	t.last = append(t.last, strings.ToValidUTF8(string(t.part), "�"))
	t.part = t.part[:0]
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := append([]string(nil), t.last...)
	if len(t.part) > 0 {
		lines = append(lines, strings.ToValidUTF8(string(t.part), "�"))
	}
	return lines
}

// Locate finds the native binary for path, which may be the binary itself or
// the npm package's Node wrapper (or a link to it): killing the wrapper can
// orphan the child behind it. A bare name is looked for on PATH, as in a shell.
// Anything else is returned as it is, made absolute.
func Locate(path string) (string, error) {
	if filepath.Base(path) == path {
		found, err := exec.LookPath(path)
		if err != nil {
			return "", err
		}
		path = found
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if real, err = filepath.Abs(real); err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", &fs.PathError{Op: "run", Path: path, Err: syscall.EISDIR}
	}
	if filepath.Base(real) != "codex.js" {
		return real, nil
	}
	return Native(filepath.Dir(filepath.Dir(real)))
}

// Native finds the native binary of an installed npm package @openai/codex,
// whose folder is pkg. The platform package lies beside it or in its own
// node_modules.
func Native(pkg string) (string, error) {
	for _, pattern := range []string{
		filepath.Join(pkg, "..", "codex-*", "vendor", "*", "bin", "codex"),
		filepath.Join(pkg, "node_modules", "@openai", "codex-*", "vendor", "*", "bin", "codex"),
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("%s: the platform package with the native binary is missing: %w", pkg, fs.ErrNotExist)
}
