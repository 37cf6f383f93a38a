package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// TestSecurityClaimsNameTheirTests reads the tables of SECURITY.md: each row of a
// table with tests names at least one, and each test that is named exists.
func TestSecurityClaimsNameTheirTests(t *testing.T) {
	text, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)` in `([\\w/]+_test\\.go)`")
	rows, inTable := 0, false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasSuffix(strings.TrimSpace(line), "| test |"):
			inTable = true
			continue
		case !strings.HasPrefix(line, "|"):
			inTable = false
		case inTable && !strings.HasPrefix(line, "|---"):
			rows++
			if !named.MatchString(line) {
				t.Errorf("no test for: %s", line)
			}
		}
		tests := named.FindAllStringSubmatch(line, -1)
		if strings.Count(line, "`Test") != len(tests) {
			t.Errorf("a test without its file: %s", line)
		}
		for _, test := range tests {
			source, err := os.ReadFile(filepath.Join("..", test[2]))
			if err != nil || !bytes.Contains(source, []byte("\nfunc "+test[1]+"(t *testing.T) {")) {
				t.Errorf("there is no %s in %s (%v)", test[1], test[2], err)
			}
		}
	}
	if rows < 20 {
		t.Errorf("only %d claims were found", rows)
	}
}

// TestPromptRunsNoProgram has a model that calls the tools with which an agent
// would run a program, as a malicious prompt makes it do. A direct child answers a
// call without a tool of the caller's by itself: that there is no such tool.
func TestPromptRunsNoProgram(t *testing.T) {
	t.Parallel()
	marker := filepath.Join(codextest.Workdir(t), "marker")
	calls := map[string]string{
		"shell":         fmt.Sprintf(`{"command":["touch",%q]}`, marker),
		"local_shell":   fmt.Sprintf(`{"command":["touch",%q]}`, marker),
		"shell_command": fmt.Sprintf(`{"command":"touch %s"}`, marker),
		"exec_command":  fmt.Sprintf(`{"cmd":"touch %s"}`, marker),
		"apply_patch":   fmt.Sprintf(`{"input":"*** Begin Patch\n*** Add File: %s\n+x\n*** End Patch"}`, marker),
	}
	up := codextest.NewUpstream(t, codextest.Text("ok")) // not strict: a direct child's own requests have more fields
	home := codextest.Workdir(t)
	config := "model_provider = \"mine\"\nsandbox_mode = \"danger-full-access\"\n[features]\nshell_tool = true\nunified_exec = true\n" +
		"[model_providers.mine]\nname = \"mine\"\nbase_url = \"" + up.URL + "/v1\"\nwire_api = \"responses\"\n"
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for choice, settings := range map[string][]string{
		"relay":  {"CODEX_UPSTREAM=" + up.URL + "/v1"},
		"direct": {"CODEX_UPSTREAM=direct", "CODEX_HOME=" + home},
	} {
		d := start(t, append(settings, "POOL_SIZE=1")...)
		for name, arguments := range calls {
			for _, tools := range []string{"", "," + twoTools} {
				call := codex.ToolCall{ID: "call_1", Name: name, Arguments: arguments}
				up.Script(codextest.Calls(call), codextest.Text("it ran"))
				res, err := d.post(`{` + hi + tools + `}`)
				if err != nil {
					t.Fatal(err)
				}
				var body bytes.Buffer
				body.ReadFrom(res.Body)
				res.Body.Close()
				if choice == "relay" && strings.Contains(body.String(), "it ran") {
					t.Errorf("%s: the child answered the call", name)
				}
				if all := up.Bodies(); choice == "direct" && bytes.Contains(all[len(all)-1], []byte("function_call_output")) && !bytes.Contains(all[len(all)-1], []byte("unsupported call: "+name)) {
					t.Errorf("%s: the child has such a tool: %s", name, all[len(all)-1])
				}
				if _, err := os.Stat(marker); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s, %s: the program ran (%v)", choice, name, err)
				}
			}
		}
	}
}

func TestPromptsAndAnswersAreNotOnDisk(t *testing.T) {
	t.Parallel()
	d, _ := withRelay(t, codextest.Text("xyzzy", "-answer"))
	for range 3 {
		if got, _ := d.complete(`"messages":[{"role":"system","content":"xyzzy-system"},{"role":"user","content":"xyzzy-prompt"}]`, true); got.String() != `assistant content "xyzzy-answer" finish stop` {
			t.Errorf("got %s", got)
		}
	}
	d.full(1)
	files := 0
	err := filepath.WalkDir(d.workdir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // it may have just been removed
		}
		data, _ := os.ReadFile(path)
		files++
		if bytes.Contains(data, []byte("xyzzy")) {
			t.Errorf("text of a conversation is in %s", path)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files, %v: this test proves nothing", files, err)
	}
}

// TestAnotherMachineReadsMetricsAndHealthAtMost calls the admin listener as the image
// has it, from an address of this machine that is not loopback: nothing is sent out.
func TestAnotherMachineReadsMetricsAndHealthAtMost(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1", "PROXY_ADMIN_ADDR=0.0.0.0:0", "PROXY_ADMIN_PUBLIC=true")
	_, port, err := net.SplitHostPort(strings.TrimPrefix(d.admin, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	call := func(host, method, path string) int {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+net.JoinHostPort(host, port)+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	elsewhere := ownAddress(t)
	for _, tt := range []struct {
		method, path string
		want         int // from elsewhere; here it is 200
	}{
		{"GET", "/metrics", 200},
		{"GET", "/readyz", 200},
		{"GET", "/pool", 403},
		{"POST", "/pool/drain", 403},
		{"POST", "/pool/resume", 403},
		{"POST", "/auth/bypass?minutes=5", 403},
		{"DELETE", "/auth/bypass", 403},
		{"GET", "/debug/pprof/", 403},
		{"GET", "/debug/pprof/heap", 403},
	} {
		if got := call(elsewhere, tt.method, tt.path); got != tt.want {
			t.Errorf("%s %s from elsewhere: %d, want %d", tt.method, tt.path, got, tt.want)
		}
		if got := call("127.0.0.1", tt.method, tt.path); got != 200 {
			t.Errorf("%s %s from here: %d", tt.method, tt.path, got)
		}
	}
}

// ownAddress is an address of this machine that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if ip, ok := addr.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	t.Skip("this machine has only loopback addresses")
	return ""
}

func TestHomesAreClosedToOtherUsers(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1")
	homes, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*"))
	if err != nil || len(homes) != 1 {
		t.Fatal(homes, err)
	}
	info, err := os.Stat(homes[0])
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the folder with the children's homes has mode %v", info.Mode())
	}
}

func TestChildInheritsNothingOfTheEnvironment(t *testing.T) {
	t.Parallel()
	const secret = "value-for-the-daemon-alone"
	d := start(t, "POOL_SIZE=1", "DATABASE_PASSWORD="+secret)
	holdsNot(t, d.children()[0], secret, key)
}

// TestWebPagesCannotUseTheDaemon has the requests that a page of another host can
// make a browser send, also by a name of its own that points to 127.0.0.1.
func TestWebPagesCannotUseTheDaemon(t *testing.T) {
	t.Parallel()
	for _, keys := range []string{"", "codexpool-dev"} {
		d := start(t, "POOL_SIZE=1", "PROXY_API_KEY="+keys)
		for _, tt := range []struct{ url, method, host, origin string }{
			{d.url + "/v1/chat/completions", "POST", "evil.example", ""},
			{d.url + "/v1/chat/completions", "POST", "", "https://evil.example"},
			{d.url + "/v1/chat/completions", "POST", "", "null"},
			{d.url + "/v1/models", "GET", "evil.example", ""},
			{d.admin + "/pool", "GET", "evil.example", ""},
			{d.admin + "/metrics", "GET", "", "https://evil.example"},
			{d.admin + "/pool/drain", "POST", "evil.example", ""},
			{d.admin + "/pool/drain", "POST", "", "https://evil.example"},
			{d.admin + "/debug/pprof/heap", "GET", "evil.example", ""},
		} {
			req, err := http.NewRequest(tt.method, tt.url, strings.NewReader(chatBody("hi", false)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer codexpool-dev")
			req.Header.Set("Content-Type", "application/json")
			if tt.host != "" {
				req.Host = tt.host
			}
			if tt.origin != "" {
				req.Header.Set("Origin", tt.origin)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if got := failure(t, res); !strings.HasPrefix(got, "403 ") {
				t.Errorf("keys %q: %s %s of host %q, origin %q: %s", keys, tt.method, tt.url, tt.host, tt.origin, got)
			}
		}
	}
}

func TestImagesAreNotFetched(t *testing.T) {
	t.Parallel()
	var fetched atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fetched.Add(1) }))
	defer web.Close()
	d, _ := withRelay(t, codextest.Text("ok"))
	for _, url := range []string{web.URL + "/image.png", "file:///etc/hostname"} {
		res, err := d.post(`{"messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"` + url + `"}}]}]}`)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	time.Sleep(100 * time.Millisecond) // a fetch may come after the answer
	if n := fetched.Load(); n > 0 {
		t.Errorf("%d images were fetched", n)
	}
}

// TestProductionRejectsUnsafeSettings has settings that would open the daemon to
// everybody: it does not start with them.
func TestProductionRejectsUnsafeSettings(t *testing.T) {
	t.Parallel()
	const good = "PROXY_API_KEY=" + key + " "
	keys := keysFile(t, keyBlock("a"))
	if err := os.Chmod(keys, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		settings string
		problem  string // how the error begins
		fix      string // what it says to do
	}{
		{"PROXY_API_KEY=", "PROXY_API_KEY: ", "production needs a key"},
		{"PROXY_API_KEY=codexpool-dev", "PROXY_API_KEY: key 1 is public", "openssl rand"},
		{"PROXY_API_KEY=" + key + ",k-2", "PROXY_API_KEY: key 2 has fewer than 20 characters", "openssl rand"},
		{"PROXY_ENV=dev PROXY_API_KEY= PROXY_HOST=0.0.0.0", "PROXY_API_KEY: ", "must be a loopback address"},
		{"PROXY_ENV=dev PROXY_API_KEY=codexpool-dev PROXY_HOST=0.0.0.0", "PROXY_API_KEY: ", "must be a loopback address"},
		{good + "PROXY_CORS_ALLOWED_ORIGINS=*", "PROXY_CORS_ALLOWED_ORIGINS: ", "exact origins such as https://app.example"},
		{good + "PROXY_CORS_ALLOWED_ORIGINS=*,https://app.example", "PROXY_CORS_ALLOWED_ORIGINS: ", "exact origins only"},
		{good + "PROXY_ADMIN_ADDR=0.0.0.0:11436", "PROXY_ADMIN_ADDR: ", "PROXY_ADMIN_PUBLIC=true"},
		{good + "PROXY_FORWARDAUTH_BYPASS_UNTIL=9999-12-31T00:00:00Z", "PROXY_FORWARDAUTH_BYPASS_UNTIL: ", "choose an earlier time"},
		{"PROXY_API_KEYS_FILE=" + keys, "PROXY_API_KEYS_FILE: others can write ", "chmod go-w"},
		{good + "PROXY_TRUSTED_PROXIES=0.0.0.0/0", "PROXY_TRUSTED_PROXIES: ", "list the proxies"},
		{good + "PROXY_SANDBOX_MODE=danger-full-access", "PROXY_SANDBOX_MODE: ", "read-only"},
		{good + "CODEX_UPSTREAM=", "CODEX_UPSTREAM: ", "set it to openai"},
	} {
		cmd := exec.Command(program)
		cmd.Env = append([]string{"HOME=" + os.Getenv("HOME"), "CODEX_UPSTREAM=echo", "PORT=0", "CODEX_BIN=/nowhere/codex"}, strings.Fields(tt.settings)...)
		out, _ := cmd.CombinedOutput()
		_, problem, found := strings.Cut(string(out), "\n  "+tt.problem)
		problem, _, _ = strings.Cut(problem, "\n")
		if code := cmd.ProcessState.ExitCode(); code != 2 || !found || !strings.Contains(tt.problem+problem, tt.fix) {
			t.Errorf("%s: exit code %d\n%s", tt.settings, code, out)
		}
		if strings.Contains(string(out), key) {
			t.Errorf("%s: a key is shown\n%s", tt.settings, out)
		}
	}
}

// A direct child gets the operator's config.toml: with a program in it, any
// client's model could have it run.
func TestDirectRejectsConfigThatRunsPrograms(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ config, name string }{
		{"[mcp_servers.mine]\ncommand = \"touch\"\n", "mcp_servers"},
		{"\"mcp\\u005fservers\".mine.command = \"touch\"\n", "mcp_servers"},
		{"notify = [\"touch\"]\n", "notify"},
	} {
		home := codextest.Workdir(t)
		if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // should it serve
		defer cancel()
		cmd := exec.CommandContext(ctx, program)
		cmd.Env = []string{
			"HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH"), "CODEX_BIN=" + codextest.Binary(t), "PROXY_API_KEY=" + key, "PORT=0",
			"PROXY_ADMIN_ADDR=", "PROXY_CODEX_WORKDIR=" + codextest.Workdir(t), "CODEX_UPSTREAM=direct", "CODEX_HOME=" + home,
		}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), tt.name) {
			t.Errorf("%s: exit code %d\n%s", tt.config, code, out)
		}
	}
}
