package e2e

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// trouble is one that a page is for. The test of the pages and the drill bring it about in
// a daemon that was well.
type trouble struct {
	page  string
	cause int                   // of the page
	env   []string              // of the daemon
	set   func(p *patient)      // makes what the daemon needs, before its start
	begin func(p *patient)      // brings it about
	goOn  func(p *patient)      // a request that meets it; nil = none is needed
	cure  func(p *patient)      // what the page says against it; nil = a restart
	over  func(p *patient) bool // it is cured; nil = a request succeeds
	files int                   // limit of descriptors, 0 = as it is
	spare []string              // commands that contain this may show that all is well, or another trouble
	alert string                // that must fire in the drill; "" = there is no drill
	also  []string              // others that may be told of in the drill
	leads string                // the page of that alert; "" = this one
	usual time.Duration         // for so long all is well before it, in the drill
	every bool                  // make test has this drill, not only make drill
	extra bool                  // for the drill alone: the test of the pages has another of this cause
}

// spares reports whether a check may be well in this trouble: it is for another cause.
func (tr trouble) spares(c check) bool {
	return slices.ContainsFunc(tr.spare, func(text string) bool { return strings.Contains(c.command, text) })
}

func troublesOf(page string) (list []trouble) {
	for _, tr := range troubles {
		if tr.page == page && !tr.extra {
			list = append(list, tr)
		}
	}
	return list
}

// patient is a daemon with one child, and with a provider that answers at once until it
// falls ill. Its users come to it through the edge, where there is one.
type patient struct {
	*daemon
	trouble  trouble
	cli      *faulty
	provider *moody
	dir      string
	disk     string // of the homes of children, where it is a small one
	env      []string
	edge     *daemon // a client of it; nil = there is none
	redis    *os.Process
	chatGPT  *chatGPT
}

func newPatient(t *testing.T, tr trouble) *patient {
	t.Helper()
	p := &patient{daemon: &daemon{t: t}, trouble: tr, cli: newFaulty(t), provider: newMoody(t), dir: t.TempDir()}
	p.env = []string{"POOL_SIZE=1", "CODEX_BIN=" + p.cli.path, "CODEX_ECHO_DELAY_MS=100", "CODEX_STOP_GRACE_MS=100", "POOL_BACKOFF_MAX_MS=500"}
	for _, entry := range tr.env {
		p.env = append(p.env, strings.NewReplacer("$PROVIDER", p.provider.URL+"/v1", "$DIR", p.dir).Replace(entry))
	}
	if tr.set != nil {
		tr.set(p)
	}
	binary := program
	if tr.files > 0 {
		binary = withFiles(t, tr.files)
	}
	p.daemon = startProgram(t, binary, p.env...)
	return p
}

// fall brings the trouble about.
func (p *patient) fall() {
	p.t.Helper()
	p.trouble.begin(p)
	if p.trouble.goOn != nil {
		p.trouble.goOn(p)
	}
}

// cured reports whether it is over.
func (p *patient) cured() bool {
	if p.trouble.over != nil {
		return p.trouble.over(p)
	}
	chunks, err := p.asUser().stream("hi")
	return err == nil && len(chunks) > 0
}

// asUser is where users send their requests.
func (p *patient) asUser() *daemon { return cmp.Or(p.edge, p.daemon) }

// moody is a provider whose answers can be changed.
type moody struct {
	*httptest.Server
	now atomic.Pointer[http.HandlerFunc]
}

func newMoody(t *testing.T) *moody {
	m := &moody{}
	m.be(codextest.Text("ok"))
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // net/http notices that a client left only after that
		(*m.now.Load())(w, r)
	}))
	t.Cleanup(func() {
		m.CloseClientConnections()
		m.Close()
	})
	return m
}

func (m *moody) be(reply http.HandlerFunc) { m.now.Store(&reply) }

// late is well, but says nothing for a while: its clock is the real one.
func late(reply http.HandlerFunc, after time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(after):
			reply(w, r)
		case <-r.Context().Done():
		}
	}
}

func mute(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// withLogin gives the daemon a ChatGPT login.
func withLogin(p *patient) {
	p.chatGPT = newChatGPT(p.t.(*testing.T), 24*time.Hour)
	p.env = append(p.env, p.chatGPT.env...)
}

// revoke makes the login void, and its refresh token too.
func revoke(p *patient) {
	p.chatGPT.tokens.Reject()
	p.chatGPT.mu.Lock()
	defer p.chatGPT.mu.Unlock()
	p.chatGPT.revoked = true
}

func logInAgain(p *patient) {
	p.chatGPT.says(nil, nil)
	codextest.AuthFile(p.t, p.chatGPT.home, "another", 24*time.Hour)
}

// backendSays has ChatGPT's backend answer whatever it is asked with reply.
func backendSays(reply http.HandlerFunc) func(p *patient) {
	return func(p *patient) { p.chatGPT.says(reply, reply) }
}

func backendIsWell(p *patient) { p.chatGPT.says(nil, nil) }

// pasteFix does what a fix says.
func pasteFix(command string) func(p *patient) {
	return func(p *patient) {
		p.t.Helper()
		if !strings.Contains(readBook(p.t, p.trouble.page), command) {
			p.t.Errorf("%s does not say %s", p.trouble.page, command)
		}
		p.paste(command)
	}
}

func ask(p *patient)       { p.asUser().stream("hi") }
func asMany(p *patient)    { p.keepBusy(strings.Repeat("word ", 1000), 3) } // one runs, one waits, one is rejected
func killChild(p *patient) { syscall.Kill(p.children()[0], syscall.SIGKILL) }
func healthy(p *patient)   { p.provider.be(codextest.Text("ok")) }
func providerIs(reply http.HandlerFunc) func(p *patient) {
	return func(p *patient) { p.provider.be(reply) }
}

func killDaemon(p *patient) {
	p.cmd.Process.Kill()
	<-p.ended
}

// settingIs has another daemon in the place of this one, with another setting.
func settingIs(entry string) func(p *patient) {
	return func(p *patient) {
		p.daemon = start(p.t, append(slices.Clone(p.env), entry)...)
	}
}

// childIs has the next child play a fault, and ends the one that is there.
func childIs(fault string) func(p *patient) {
	return func(p *patient) {
		p.cli.set(fault)
		killChild(p)
	}
}

func childIsWell(p *patient) { p.cli.set("") }

// turnFaults has a child with a fault in its turns ready.
func turnFaults(fault string) func(p *patient) {
	return func(p *patient) {
		childIs(fault)(p)
		eventually(p.t, time.Minute, "death", func() bool { return len(p.pool().Deaths) == 1 })
		p.full(1)
	}
}

const (
	refreshes = "login_refreshes"
	busyQueue = `"wait":`
)

var provided = []string{"CODEX_UPSTREAM=$PROVIDER", "CODEX_UPSTREAM_API_KEY=k-upstream"}

func providedAnd(more ...string) []string { return append(slices.Clone(provided), more...) }

// troubles are all that are tried, in the order of the index.
var troubles = []trouble{
	{page: "Down.md", cause: 1, alert: "CodexpoolDown", every: true, begin: killDaemon},
	{page: "Down.md", cause: 2, begin: func(p *patient) {
		p.cmd.Process.Signal(syscall.SIGSTOP)
		p.t.Cleanup(func() { p.cmd.Process.Signal(syscall.SIGCONT) })
	}, cure: func(p *patient) { p.cmd.Process.Signal(syscall.SIGCONT) }},
	{page: "Unavailable.md", cause: 1, alert: "CodexpoolUnavailable", begin: pasteDrain, cure: pasteFix("curl -s -X POST 127.0.0.1:11436/pool/resume")},
	{page: "Unavailable.md", cause: 2, begin: childIs("exits in handshake"), cure: childIsWell},
	{page: "Unavailable.md", cause: 3, env: provided, begin: providerIs(codextest.Status(401, "")), goOn: ask},
	{page: "ErrorBudgetBurn.md", cause: 1, alert: "CodexpoolErrorBudgetBurn", also: []string{"CodexpoolUpstreamFails"}, env: provided, begin: providerIs(codextest.Status(500, "")), goOn: ask, cure: healthy},
	{page: "ErrorBudgetBurn.md", cause: 2, begin: turnFaults("writes garbage"), goOn: ask, cure: childIsWell},
	{page: "ErrorBudgetBurn.md", cause: 3, env: []string{"POOL_MAX_WAITING=1"}, begin: asMany},
	{page: "FirstTokenSlow.md", cause: 1, begin: func(p *patient) { p.keepBusy(strings.Repeat("word ", 30), 2) }, goOn: ask},
	{page: "FirstTokenSlow.md", cause: 2, env: provided, begin: providerIs(late(codextest.Text("ok"), 2100*time.Millisecond)), goOn: ask, cure: healthy, spare: []string{busyQueue}},
	{page: "PoolSaturated.md", cause: 1, alert: "CodexpoolPoolSaturated", env: []string{"POOL_MAX_WAITING=1"}, begin: asMany},
	{page: "PoolSaturated.md", cause: 2, begin: func(p *patient) {
		childIs("never initializes")(p)
		eventually(p.t, time.Minute, "start", func() bool { return p.metrics()[`codexpool_pool_children{state="starting"}`] == 1 })
		p.keepBusy("hi", 1)
	}, cure: func(p *patient) {
		childIsWell(p)
		for _, pid := range p.children() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}, spare: []string{"acquires", "pool_saturated"}},
	{page: "ChildStartsFail.md", cause: 1, alert: "CodexpoolChildStartsFail", every: true, also: []string{"CodexpoolUnavailable"}, begin: childIs("exits in handshake"), cure: childIsWell},
	{page: "ChildStartsFail.md", cause: 2, env: []string{"CODEX_START_TIMEOUT_MS=3000"}, begin: childIs("never initializes"), cure: childIsWell},
	{page: "ChildStartsFail.md", cause: 3, begin: func(p *patient) {
		if err := os.Rename(p.cli.path, p.cli.path+".old"); err != nil {
			p.t.Fatal(err)
		}
		killChild(p)
	}, cure: func(p *patient) { os.Rename(p.cli.path+".old", p.cli.path) }},
	{page: "ChildrenCrash.md", cause: 1, alert: "CodexpoolChildrenCrash", env: []string{"POOL_PROBE_MS=100"}, begin: childIs("exits when probed"), cure: childIsWell},
	{page: "ChildrenCrash.md", cause: 4, begin: turnFaults("writes garbage"), goOn: ask, cure: childIsWell},
	{page: "ChildrenCrash.md", cause: 5, begin: func(p *patient) { limitFiles(p.t.(*testing.T), p.children()[0], 10) }, goOn: func(p *patient) {
		eventually(p.t, time.Minute, "death of the child", func() bool {
			p.stream("hi") // it may fail
			return len(p.pool().Deaths) > 0
		})
	}, cure: func(*patient) {}},
	{page: "ChildWedged.md", cause: 1, env: []string{"POOL_PROBE_MS=500", "PROXY_STREAM_IDLE_TIMEOUT_MS=500"}, begin: func(p *patient) {
		turnFaults("steers")(p) // its turns never begin
		p.cli.set("")
		p.stream("hi")
		eventually(p.t, time.Minute, "second death", func() bool { return len(p.pool().Deaths) == 2 })
		p.full(1)
		syscall.Kill(p.children()[0], syscall.SIGSTOP)
	}, cure: func(p *patient) {
		for _, pid := range p.children() {
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}},
	{page: "ChildWedged.md", cause: 1, alert: "CodexpoolChildrenWedged", extra: true, env: []string{"POOL_SIZE=2", "POOL_PROBE_MS=500"}, begin: stopOne, goOn: stopOne, cure: func(p *patient) {
		for _, pid := range p.children() { // those that are there when the fix is done
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}},
	{page: "Timeouts.md", cause: 1, alert: "CodexpoolTimeouts", every: true, also: []string{"CodexpoolErrorBudgetBurn", "CodexpoolUpstreamFails"}, env: providedAnd("PROXY_STREAM_IDLE_TIMEOUT_MS=300"), begin: providerIs(mute), goOn: ask, cure: healthy},
	{page: "Timeouts.md", cause: 2, env: []string{"PROXY_STREAM_IDLE_TIMEOUT_MS=500"}, begin: turnFaults("steers"), goOn: ask, cure: childIsWell},
	{page: "Timeouts.md", cause: 3, env: []string{"PROXY_TIMEOUT_MS=1000"}, begin: asMany},
	{page: "ChildMemoryGrows.md", cause: 1, alert: "CodexpoolChildMemoryHigh", env: []string{"POOL_MAX_CHILD_BYTES=250000000", "POOL_MIN_LIFE_MS=0"}, goOn: ask, begin: func(p *patient) {
		turnFaults("grows")(p)
		for range 4 { // by 64 MB each: it is retired
			p.stream("hi")
		}
		eventually(p.t, time.Minute, "death by memory", func() bool { return len(p.pool().Deaths) == 2 })
		p.stream("hi") // the next child is kept
	}, cure: func(p *patient) {
		childIsWell(p)
		pasteFix("curl -s -X POST 127.0.0.1:11436/pool/recycle")(p)
	}},
	{page: "MachineStarved.md", cause: 1, env: []string{"POOL_PROBE_MS=6000"}, begin: func(p *patient) {
		turnFaults("answers a probe late")(p)
		eventually(p.t, time.Minute, "late probe", func() bool {
			c := p.pool().Children
			return len(c) == 1 && c[0].Probe != nil && c[0].Probe.Took > 1
		})
	}},
	{page: "FileDescriptors.md", cause: 1, alert: "CodexpoolConnectionsNearLimit", files: 92, begin: func(p *patient) {
		for range 40 {
			if conn, err := net.DialTimeout("tcp", strings.TrimPrefix(p.url, "http://"), time.Second); err == nil {
				p.t.Cleanup(func() { conn.Close() })
			}
		}
	}},
	{page: "DiskFull.md", cause: 1, alert: "CodexpoolDiskFull", also: []string{"CodexpoolChildStartsFail", "CodexpoolPoolNotFull"}, env: []string{"POOL_SIZE=2"}, set: func(p *patient) {
		p.disk = smallDisk(p.t, "280m")
		p.env = append(p.env, "PROXY_CODEX_WORKDIR="+p.disk)
	}, begin: func(p *patient) {
		eventually(p.t, time.Minute, "start that fails", func() bool {
			fill(p.t, p.disk)
			if pids := p.children(); len(pids) == 2 {
				syscall.Kill(slices.Max(pids), syscall.SIGKILL) // which makes room, of its home
			}
			return strings.Contains(p.logged(), "no space left on device")
		})
	}, goOn: func(p *patient) { fill(p.t, p.disk) }, cure: func(p *patient) { empty(p.t, p.disk) }},
	{page: "StreamsNearLimit.md", cause: 1, alert: "CodexpoolStreamsNearLimit", also: []string{"CodexpoolPoolSaturated"}, env: []string{"PROXY_SSE_MAX_CONCURRENCY=2"}, begin: asMany},
	{page: "UpstreamAuth.md", cause: 1, alert: "CodexpoolUpstreamAuth", every: true, env: provided, begin: providerIs(codextest.Status(401, "")), goOn: ask, spare: []string{refreshes}},
	{page: "UpstreamAuth.md", cause: 2, set: withLogin, begin: func(p *patient) {
		revoke(p)
		ask(p)
		eventually(p.t, time.Minute, "refused refresh", func() bool { return p.total("codexpool_login_refreshes_total", `outcome="refused"`) > 0 })
	}, cure: logInAgain, spare: []string{"codexpool check"}},
	{page: "ChatGPT.md", cause: 1, set: withLogin, begin: func(p *patient) {
		revoke(p)
		p.chatGPT.says(codextest.Status(401, `{"detail":"Your token was revoked."}`), nil)
	}, goOn: ask, cure: logInAgain, spare: []string{"usage_limit"}},
	{page: "ChatGPT.md", cause: 3, set: withLogin, begin: backendSays(codextest.Status(401, `{"detail":"Workspace is not authorized in this region."}`)), goOn: ask, cure: backendIsWell, spare: []string{"usage_limit"}},
	{page: "ChatGPT.md", cause: 4, set: withLogin, begin: backendSays(codextest.Status(400, `{"detail":"The model requires a newer version of Codex."}`)), goOn: ask, cure: backendIsWell, spare: []string{"usage_limit"}},
	{page: "ChatGPT.md", cause: 5, env: []string{"CODEX_MODEL=gpt-5.5"}, set: withLogin, begin: func(p *patient) {
		p.chatGPT.says(codextest.Status(200, `{"models":[{"slug":"another"}]}`), codextest.Status(400, `{"detail":"The model is not supported when using Codex with a ChatGPT account."}`))
	}, goOn: ask, cure: backendIsWell, spare: []string{"usage_limit"}},
	{page: "ChatGPT.md", cause: 6, set: withLogin, begin: func(p *patient) {
		p.chatGPT.says(nil, codextest.Status(429, `{"error":{"type":"usage_limit_reached","message":"m","resets_in_seconds":60}}`))
	}, goOn: ask, cure: backendIsWell, spare: []string{"codexpool check"}},
	{page: "ChatGPT.md", cause: 7, set: withLogin, begin: backendSays(codextest.Status(402, `{"detail":{"code":"deactivated_workspace"}}`)), goOn: ask, cure: backendIsWell},
	{page: "ChatGPT.md", cause: 8, set: withLogin, begin: backendSays(page(403, "<html>")), goOn: ask, cure: backendIsWell, spare: []string{"usage_limit"}},
	{page: "UpstreamFails.md", cause: 1, env: provided, begin: func(p *patient) {
		p.provider.CloseClientConnections()
		p.provider.Listener.Close()
	}, goOn: ask},
	{page: "UpstreamFails.md", cause: 2, alert: "CodexpoolUpstreamFails", every: true, also: []string{"CodexpoolErrorBudgetBurn"}, env: provided, begin: providerIs(codextest.Status(500, "")), goOn: ask, cure: healthy},
	{page: "UpstreamLimits.md", cause: 1, alert: "CodexpoolUsageLimitReached", also: []string{"CodexpoolUpstreamFails"}, env: provided, begin: providerIs(retryAfter(429, "60", `{"error":{"code":"insufficient_quota","message":"m"}}`)), goOn: ask, cure: healthy},
	{page: "UpstreamLimits.md", cause: 2, env: provided, begin: providerIs(retryAfter(429, "60", `{"error":{"code":"rate_limit_exceeded","message":"m"}}`)), goOn: ask, cure: healthy},
	{page: "EdgeErrors.md", cause: 1, begin: killDaemon, spare: []string{"499", "unmatched"}},
	{page: "EdgeErrors.md", cause: 2, env: provided, begin: providerIs(mute), goOn: func(p *patient) {
		for range 3 { // an edge that waits for a second
			ctx, cancel := context.WithTimeout(p.t.Context(), time.Second)
			if res, err := http.DefaultClient.Do(p.newRequest(chatBody("hi", false)).WithContext(ctx)); err == nil {
				res.Body.Close()
			}
			cancel()
		}
	}, cure: healthy, spare: []string{"health", "unmatched"}},
	{page: "EdgeErrors.md", cause: 4, alert: "CodexpoolUnmatchedRequests", begin: func(*patient) {}, cure: func(*patient) {}, goOn: func(p *patient) { p.request("GET", "/prefix/v1/models", "Bearer "+key, "", "").Body.Close() }, spare: []string{"health", "499"}},
	{page: "EdgeErrors.md", cause: 1, alert: "CodexpoolDown", leads: "Down.md", extra: true, set: behindEdge("nginx"), begin: killDaemon, goOn: usersSee(edgeFails)},
	{page: "EdgeErrors.md", cause: 2, alert: "CodexpoolClientsLeave", extra: true, env: providedAnd("POOL_SIZE=3"), set: behindEdge("nginx", "1860s", "1s"), begin: providerIs(mute), goOn: usersSee(edgeTimesOut), cure: healthy},
	{page: "EdgeErrors.md", cause: 2, alert: "CodexpoolClientsLeave", every: true, extra: true, env: providedAnd("POOL_SIZE=3"), set: behindEdge("caddy", "1860s", "1s"), begin: providerIs(mute), goOn: usersSee(edgeTimesOut), cure: healthy},
	{page: "EdgeErrors.md", cause: 3, alert: "CodexpoolTrafficGone", extra: true, usual: 90 * time.Second, set: behindEdge("caddy"), begin: func(p *patient) {
		p.edge = edgeOf("caddy").start(p.t.(*testing.T), "127.0.0.1:"+freePorts(p.t.(*testing.T), 1)[0], nil)
	}, goOn: usersSee(edgeFails), cure: func(p *patient) {
		p.edge = edgeOf("caddy").start(p.t.(*testing.T), strings.TrimPrefix(p.url, "http://"), nil)
	}},
	{page: "CORS.md", cause: 1, alert: "CodexpoolCORSRefused", every: true, env: []string{"PROXY_CORS_ALLOWED_ORIGINS=https://app.example"}, begin: settingIs("PROXY_CORS_ALLOWED_ORIGINS=https://app.example:8443"), goOn: func(p *patient) {
		req := p.newRequest(chatBody("hi", false))
		req.Header.Set("Origin", "https://app.example")
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
		}
	}},
	{page: "ForwardAuth.md", cause: 2, alert: "CodexpoolForwardAuthDenies", every: true, also: []string{"CodexpoolAuthFailures"}, begin: settingIs("PROXY_API_KEY=another-key-of-the-same-length"), goOn: func(p *patient) { p.request("GET", "/verify", "Bearer "+key, "", "").Body.Close() }, spare: []string{"bypass_until"}},
	{page: "ForwardAuth.md", cause: 3, begin: killDaemon, spare: []string{"codexpool metrics"}},
	{page: "ForwardAuth.md", cause: 3, alert: "CodexpoolDown", leads: "Down.md", extra: true, set: behindEdge("caddy"), begin: killDaemon, goOn: usersSee(edgeFails)},
	{page: "ForwardAuth.md", cause: 6, alert: "CodexpoolForwardAuthBypassed", begin: pasteFix("curl -s -X POST '127.0.0.1:11436/auth/bypass?minutes=30'"), goOn: func(p *patient) {
		p.request("GET", "/verify", "", "", "").Body.Close()
	}, cure: pasteFix("curl -s -X DELETE 127.0.0.1:11436/auth/bypass"), spare: []string{"/verify"}},
	{page: "AuthFailures.md", cause: 1, alert: "CodexpoolAuthFailures", begin: func(*patient) {}, cure: func(*patient) {}, goOn: func(p *patient) {
		p.request("POST", chatPath, "Bearer wrong", "application/json", chatBody("hi", false)).Body.Close()
	}, spare: []string{"permission_denied.* "}},
	{page: "AuthFailures.md", cause: 4, set: func(p *patient) {
		p.env = append(p.env, "PROXY_API_KEYS_FILE="+keysFile(p.t, keyBlock("lister", `routes = ["models"]`)))
	}, begin: func(*patient) {}, goOn: func(p *patient) {
		p.request("POST", chatPath, "Bearer lister", "application/json", chatBody("hi", false)).Body.Close()
	}, spare: []string{"auth_failures"}},
	{page: "Keys.md", cause: 1, alert: "CodexpoolKeysNotReloaded", env: []string{"PROXY_API_KEYS_FILE=$DIR/keys.toml"}, set: goodKeys, begin: func(p *patient) {
		write(p.t.(*testing.T), filepath.Join(p.dir, "keys.toml"), "[[key]\n")
	}, cure: goodKeys},
	{page: "Keys.md", cause: 2, env: []string{"PROXY_API_KEYS_FILE=$DIR/keys.toml"}, set: goodKeys, begin: func(p *patient) {
		os.Remove(filepath.Join(p.dir, "keys.toml"))
	}, cure: goodKeys},
	{page: "RateLimits.md", cause: 1, alert: "CodexpoolRateLimitLocal", set: func(p *patient) {
		process, addr := redisServer(p.t)
		p.redis = process
		p.env = append(p.env, "PROXY_RATE_LIMIT_REDIS_URL=redis://"+addr, "PROXY_RATE_LIMIT_MAX=1000")
	}, begin: func(p *patient) { p.redis.Signal(syscall.SIGSTOP) }, goOn: func(p *patient) {
		for range 4 {
			p.stream("hi")
		}
	}, cure: func(p *patient) { p.redis.Signal(syscall.SIGCONT) }, spare: []string{"limited"}},
	{page: "RateLimits.md", cause: 2, set: func(p *patient) {
		_, addr := redisServer(p.t)
		p.env = append(p.env, "PROXY_RATE_LIMIT_REDIS_URL=redis://"+addr, "PROXY_API_KEYS_FILE="+keysFile(p.t, keyBlock("eager", "requests_per_minute = 1")))
	}, begin: func(*patient) {}, goOn: func(p *patient) {
		for range 2 {
			p.request("POST", chatPath, "Bearer eager", "application/json", chatBody("hi", false)).Body.Close()
		}
	}, spare: []string{"redis_up"}},
	{page: "CodexUpgrade.md", cause: 1, begin: func(p *patient) {
		text, err := os.ReadFile(p.cli.path)
		if err != nil {
			p.t.Fatal(err)
		}
		newer := strings.Replace(string(text), "#!/bin/sh\n", "#!/bin/sh\n[ \"$1\" = --version ] && echo codex-cli 9.9.9 && exit\n", 1)
		if err := os.WriteFile(p.cli.path+".new", []byte(newer), 0o700); err != nil {
			p.t.Fatal(err)
		}
		os.Rename(p.cli.path, p.cli.path+".old")
		os.Rename(p.cli.path+".new", p.cli.path)
		pasteFix("curl -s -X POST 127.0.0.1:11436/pool/recycle")(p)
	}, cure: func(p *patient) {
		os.Rename(p.cli.path+".old", p.cli.path)
		pasteFix("curl -s -X POST 127.0.0.1:11436/pool/recycle")(p)
	}, over: func(p *patient) bool {
		c := p.pool().Children
		return len(c) == 1 && c[0].Version != "9.9.9"
	}},
	{page: "Drain.md", cause: 1, begin: pasteFix("curl -s -X POST 127.0.0.1:11436/pool/drain"), cure: pasteFix("curl -s -X POST 127.0.0.1:11436/pool/resume")},
}

// behindEdge puts an edge in front of the daemon, on a port that stays its own. changed are
// texts of the edge's file, each with what takes its place.
func behindEdge(name string, changed ...string) func(p *patient) {
	return func(p *patient) {
		t := p.t.(*testing.T)
		port := freePorts(t, 1)[0]
		p.env = append(p.env, "PORT="+port, "PROXY_TRUSTED_PROXIES=127.0.0.1")
		var replacer *strings.Replacer
		if len(changed) > 0 {
			replacer = strings.NewReplacer(changed...)
		}
		p.edge = edgeOf(name).start(t, "127.0.0.1:"+port, replacer)
	}
}

func edgeOf(name string) edge {
	return edges[slices.IndexFunc(edges, func(e edge) bool { return e.name == name })]
}

// usersSee has users send three requests at once: this is what each must get.
func usersSee(want string) func(p *patient) {
	return func(p *patient) {
		p.edge.spread(3, 3, func(int) error {
			if got := failure(p.t, p.edge.request("POST", chatPath, "Bearer "+key, "application/json", chatBody("hi", false))); got != want {
				return fmt.Errorf("users see %s, want %s", got, want)
			}
			return nil
		})
	}
}

// stopOne stops one of the two children, unless one is stopped.
func stopOne(p *patient) {
	pids := p.children()
	stopped := slices.ContainsFunc(pids, func(pid int) bool {
		state, _ := stateOf(fmt.Sprint("/proc/", pid))
		return state == "T"
	})
	if len(pids) == 2 && !stopped {
		syscall.Kill(pids[0], syscall.SIGSTOP)
	}
}

func pasteDrain(p *patient) { p.operate("drain") }

func goodKeys(p *patient) { writeKeys(p.t, filepath.Join(p.dir, "keys.toml"), keyBlock("alice")) }

// keepBusy sends requests whose answers are read until the test ends.
func (d *daemon) keepBusy(text string, times int) {
	for range times {
		req, err := http.NewRequestWithContext(d.t.Context(), "POST", d.url+"/v1/chat/completions", strings.NewReader(chatBody(text, true)))
		if err != nil {
			d.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		go func() { // ends with the test
			if res, err := http.DefaultClient.Do(req); err == nil {
				readStream(res.Body, func(chunk) {})
				res.Body.Close()
			}
		}()
	}
}
