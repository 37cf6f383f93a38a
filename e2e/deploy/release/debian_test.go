package release

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// debian is an empty Debian, made once: what every installation has, and no more.
var debian = sync.OnceValues(func() (string, error) {
	targets, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	mirror, codename, _ := strings.Cut(strings.TrimSpace(string(targets[:bytes.IndexByte(targets, '\n')+1])), " ")
	root := filepath.Join(folder, "debian")
	if out, err := exec.Command("debootstrap", "--variant=minbase", codename, root, mirror).CombinedOutput(); err != nil {
		return "", fmt.Errorf("debootstrap: %w\n%s", err, out)
	}
	return root, nil
})

// box is a Debian of a test's own.
type box struct {
	t    *testing.T
	root string
}

func newBox(t *testing.T) box {
	t.Helper()
	needs(t, "debootstrap")
	if os.Geteuid() != 0 {
		missing(t, "only root can make a Debian")
	}
	empty, err := debian()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(folder, t.Name())
	if out, err := exec.Command("cp", "-a", empty, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return box{t, root}
}

// confine are lines of shell that run in a mount namespace of their own, before the program
// in the root $1.
const confine = `
mount --rbind "$1" "$1"
mount -t proc -o hidepid=invisible proc "$1/proc"
mount -t tmpfs tmpfs "$1/dev"
for device in null zero full random urandom tty; do touch "$1/dev/$device"; mount --bind /dev/$device "$1/dev/$device"; done
`

// command is a program in the box, which sees its own processes and a few devices. setup
// are more lines of shell before it.
func (b box) command(setup string, args ...string) *exec.Cmd {
	script := "set -e\n" + confine + setup + "\nroot=$1; shift; exec chroot \"$root\" \"$@\"\n"
	cmd := exec.Command("unshare", append([]string{"--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", script, "sh", b.root}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

// run runs a program in the box to its end.
func (b box) run(args ...string) string {
	b.t.Helper()
	out, err := b.command("", args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// install has dpkg install packages.
func (b box) install(packages ...string) {
	b.t.Helper()
	args := []string{"dpkg", "--install", "--force-confold"}
	for _, path := range packages {
		b.write(filepath.Base(path), string(b.read(path)))
		args = append(args, "/"+filepath.Base(path))
	}
	b.run(args...)
	for _, path := range packages {
		os.Remove(filepath.Join(b.root, filepath.Base(path)))
	}
}

func (b box) read(path string) []byte {
	b.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// write writes a file of the box as an editor does: its owner and mode stay.
func (b box) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.root, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// serves starts the daemon, has it answer a completion, and stops it as a supervisor does.
func (b box) serves(cmd *exec.Cmd, port, key string) {
	b.t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the daemon
	defer func() {
		cmd.Process.Kill()
		if b.t.Failed() {
			b.t.Logf("the log:\n%s", &log)
		}
	}()
	url := "http://127.0.0.1:" + port
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		res, err := http.Get(url + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		if err == nil && res.StatusCode == http.StatusOK {
			break
		}
		if time.Since(began) > time.Minute || len(ended) > 0 {
			b.t.Fatalf("not ready: %v", err)
		}
	}
	req, err := http.NewRequest("POST", url+"/v1/chat/completions", strings.NewReader(`{"model":"codex-5","messages":[{"role":"user","content":"one two three"}]}`))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	var answer struct {
		Choices []struct{ Message struct{ Content string } }
	}
	if json.Unmarshal(body, &answer); err != nil || len(answer.Choices) != 1 || answer.Choices[0].Message.Content != "one two three" {
		b.t.Errorf("%s: %s, %v", res.Status, body, err)
	}
	// The daemon took the place of the shell, so it is the child of unshare.
	child := 0
	children := string(b.read(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid)))
	if _, err := fmt.Sscan(children, &child); err != nil {
		b.t.Fatal(err)
	}
	syscall.Kill(child, syscall.SIGTERM)
	select {
	case err := <-ended:
		if err != nil {
			b.t.Errorf("it ends with %v", err)
		}
	case <-time.After(20 * time.Second):
		b.t.Error("it does not stop")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

func TestArchivesRunWithoutGoAndNode(t *testing.T) {
	b := newBox(t)
	unpack(t, released(t, "codexpool_*_linux_amd64.tar.gz"), filepath.Join(b.root, "usr/local"))
	unpack(t, released(t, "codexpool-codex_*_linux_amd64.tar.gz"), filepath.Join(b.root, "usr/local"))
	for _, want := range []string{"codexpool v" + version(t) + "\n", "\nGo        go1.", " linux/amd64\n", "\nCodex CLI 0."} {
		if out := b.run("codexpool", "version"); !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	const key = "k-release-0123456789abcdef"
	port := freePort(t)
	environ := []string{"CODEX_UPSTREAM=echo", "PROXY_API_KEY=" + key, "PORT=" + port, "PROXY_ADMIN_ADDR=127.0.0.1:0", "POOL_SIZE=1"}
	check := b.command("", "codexpool", "check")
	check.Env = append(check.Env, environ...)
	if out, err := check.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), "\nok\n") || !strings.Contains(string(out), "binary:     /usr/local/lib/codexpool-codex/bin/codex\n") {
		t.Errorf("check: %v\n%s", err, out)
	}
	serve := b.command("", "codexpool", "serve", "--env-file", "/usr/local/share/codexpool/profiles/prod.env")
	serve.Env = append(serve.Env, append(environ, "PROXY_PRESTOP_MS=0", "POOL_MIN_IDLE=1")...)
	b.serves(serve, port, key)
}

// tried are the directives of the unit whose effect the confined daemon has. Each is here
// with what has it.
var tried = map[string]string{
	"UMask=0077":                                   "umask 0077\n",
	"LimitCORE=0":                                  "ulimit -c 0\n",
	"LimitNOFILE=65536":                            "ulimit -n 65536 2>/dev/null || ulimit -n \"$(ulimit -Hn)\"\n",
	"ProtectSystem=strict":                         "mount -o remount,bind,ro \"$1\"; mount --bind \"$cache\" \"$cache\"; mount -o remount,bind,rw \"$cache\"\n",
	"ProtectHome=yes":                              "mount -t tmpfs -o ro,mode=0 tmpfs \"$1/home\"; mount -t tmpfs -o ro,mode=0 tmpfs \"$1/root\"\n",
	"PrivateTmp=yes":                               "mount -t tmpfs tmpfs \"$1/tmp\"; mount -t tmpfs tmpfs \"$1/var/tmp\"\n",
	"PrivateDevices=yes":                           "mount -o remount,ro,noexec \"$1/dev\"\n",
	"ProtectKernelTunables=yes":                    "mount --bind \"$1/proc/sys\" \"$1/proc/sys\"; mount -o remount,bind,ro \"$1/proc/sys\"\n",
	"ProtectControlGroups=yes":                     "for dir in /sys /sys/fs/cgroup; do mount --bind $dir \"$1$dir\"; mount -o remount,bind,ro \"$1$dir\"; done\n",
	"ProtectProc=invisible":                        "", // confine has it
	"PrivateIPC=yes":                               "", // unshare has these
	"ProtectHostname=yes":                          "",
	"User=codexpool":                               "", // setpriv has these
	"SystemCallFilter=@system-service":             "", // filtered has these
	"SystemCallArchitectures=native":               "",
	"SystemCallErrorNumber=EPERM":                  "",
	"NoNewPrivileges=yes":                          "",
	"CapabilityBoundingSet=":                       "",
	"TasksMax=1024":                                "", // prlimit has it
	"CacheDirectory=codexpool":                     "",
	"CacheDirectoryMode=0700":                      "",
	"EnvironmentFile=/etc/codexpool/codexpool.env": "",
	"Environment=PROXY_CODEX_WORKDIR=%C/codexpool": "",
}

// others are the directives that are about the daemon, or about systemd.
var others = regexp.MustCompile(`^(\[.*|Description|Documentation|Wants|After|WantedBy|Type|ExecStart|ExecReload|LoadCredential|Restart\w*|WatchdogSec|KillMode|TimeoutStopSec|Environment=(OPENAI_API_KEY_FILE|GOTRACEBACK).*)(=|$)`)

// confined is the daemon as the unit runs it: each directive is imitated.
func (b box) confined() *exec.Cmd {
	b.t.Helper()
	unit := string(b.read(filepath.Join(b.root, "usr/lib/systemd/system/codexpool.service")))
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("usr/bin/filtered", string(b.read(self)))
	os.Chmod(filepath.Join(b.root, "usr/bin/filtered"), 0o755)
	cache := filepath.Join(b.root, "var/cache/codexpool")
	setup := "cache='" + cache + "'\nmkdir -m 0700 \"$cache\"; chroot \"$1\" chown codexpool: /var/cache/codexpool\n"
	var lines []string
	for line := range strings.Lines(unit) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' || others.MatchString(line) {
			continue
		}
		effect, known := tried[line]
		if !known {
			b.t.Errorf("children were not tried under %s", line)
		}
		lines = append(lines, effect)
	}
	slices.SortStableFunc(lines, func(x, y string) int { // the root becomes read-only last
		return strings.Count(x, "$cache") - strings.Count(y, "$cache")
	})
	cmd := b.command(setup+strings.Join(lines, ""), "setpriv", "--reuid=codexpool", "--regid=codexpool", "--clear-groups",
		"--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "prlimit", "--nproc=1024:1024", "/usr/bin/filtered", "codexpool", "serve")
	cmd.Env = append(cmd.Env, filterVar+"="+systemCalls(b.t, "@system-service"), "GOTRACEBACK=crash", "PROXY_CODEX_WORKDIR=/var/cache/codexpool")
	for line := range strings.Lines(string(b.read(filepath.Join(b.root, "etc/codexpool/codexpool.env")))) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			cmd.Env = append(cmd.Env, line)
		}
	}
	return cmd
}

func TestPackagesInstallServeUpgradeAndLeaveNothing(t *testing.T) {
	b := newBox(t)
	before := b.files()
	deb := released(t, "codexpool_*_amd64.deb")
	b.install(deb, released(t, "codexpool-codex_*_amd64.deb"))
	if out := b.run("dpkg", "--verify", "codexpool", "codexpool-codex"); out != "" {
		t.Errorf("dpkg --verify: %s", out)
	}
	const settings = "etc/codexpool/codexpool.env"
	if info, err := os.Stat(filepath.Join(b.root, settings)); err != nil || info.Mode() != 0o640 {
		t.Errorf("the settings: %v, %v", info.Mode(), err)
	}
	out := b.run("sh", "-c", "codexpool key new alice >>/etc/codexpool/keys.toml")
	key := regexp.MustCompile(`cpk-\S+`).FindString(out)
	port := freePort(t)
	edited := string(b.read(filepath.Join(b.root, settings))) + "CODEX_UPSTREAM=echo\nPORT=" + port + "\nPROXY_ADMIN_ADDR=127.0.0.1:0\n"
	edited = strings.ReplaceAll(edited, "PROXY_PRESTOP_MS=5000", "PROXY_PRESTOP_MS=0")
	b.write(settings, edited)
	b.serves(b.confined(), port, key)
	os.Remove(filepath.Join(b.root, "usr/bin/filtered"))

	b.install(repacked(t, deb, "0.1.1"))
	if got := b.run("dpkg-query", "--show", "--showformat=${Version} ${Status}", "codexpool"); got != "0.1.1 install ok installed" {
		t.Error("upgraded: ", got)
	}
	if got := string(b.read(filepath.Join(b.root, settings))); got != edited {
		t.Errorf("the upgrade changed the settings:\n%s", got)
	}
	b.run("dpkg", "--install", "--force-confold", "--force-downgrade", b.put(deb))
	b.run("dpkg", "--remove", "codexpool")
	if got := string(b.read(filepath.Join(b.root, settings))); got != edited {
		t.Errorf("the removal changed the settings:\n%s", got)
	}
	b.run("dpkg", "--purge", "codexpool", "codexpool-codex")
	for path := range b.files() {
		if !before[path] {
			t.Errorf("after the purge there is %s", path)
		}
	}
	if passwd := string(b.read(filepath.Join(b.root, "etc/passwd"))); strings.Contains(passwd, "codexpool") {
		t.Errorf("after the purge there is a user:\n%s", passwd)
	}
}

// put copies a file into the box for a moment, and returns its path there.
func (b box) put(path string) string {
	b.t.Helper()
	name := filepath.Base(path)
	b.write("tmp/"+name, string(b.read(path)))
	b.t.Cleanup(func() { os.Remove(filepath.Join(b.root, "tmp", name)) })
	return "/tmp/" + name
}

// repacked is a package as another version, with other settings in it.
func repacked(t *testing.T, deb, as string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "package")
	to := filepath.Join(t.TempDir(), "codexpool_"+as+".deb")
	script := `dpkg-deb --raw-extract "$1" "$2"; sed -i "s/^Version: .*/Version: $4/" "$2/DEBIAN/control"; echo "# another setting" >>"$2/etc/codexpool/codexpool.env"; dpkg-deb --root-owner-group -Zgzip --build "$2" "$3"`
	if out, err := exec.Command("sh", "-ec", script, "sh", deb, dir, to, as).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// files are those of the box, without what dpkg itself and its logs keep.
func (b box) files() map[string]bool {
	b.t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir(b.root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(b.root, path)
		if name == "var/lib/dpkg" || name == "var/log" || name == "tmp" || name == "dev" || name == "var/cache/ldconfig" {
			return fs.SkipDir
		}
		// What shadow keeps beside /etc/passwd.
		if !strings.HasSuffix(name, "-") && name != "etc/.pwd.lock" {
			all[name] = true
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}
