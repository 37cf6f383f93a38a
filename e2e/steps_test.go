package e2e

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
)

// outcome is how one stream ends for its client: "whole", or the code of the error, after
// "cut" where a part of the answer had come.
func (d *daemon) outcome() string {
	d.t.Helper()
	chunks, err := d.stream("hi")
	if _, notWhole := wholeText(chunks); err == nil && notWhole == nil {
		return "whole"
	}
	if n := len(chunks); n > 0 {
		return "cut " + chunks[n-1].error
	}
	_, rest, _ := strings.Cut(err.Error(), `"code":"`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}

// TestFaultsAtEachStepOfATurn has a child that is killed, stopped or wedged at each step
// of a turn behind the relay. A child that has got the conversation may have died of it, so
// no other gets it. Once the provider has the request, the answer needs the child only to
// tell whether it is alive.
func TestFaultsAtEachStepOfATurn(t *testing.T) {
	t.Parallel()
	kill := func(pid int) { syscall.Kill(pid, syscall.SIGKILL) }
	stop := func(pid int) { syscall.Kill(pid, syscall.SIGSTOP) }
	for _, tt := range []struct {
		name   string
		fault  string        // of faults; "" = the real CLI
		step   string        // at which act is done
		act    func(pid int) // nil = the child has its fault by itself
		want   string        // see outcome
		reason string        // of the child's death
	}{
		{"killed before it asks", "is killed when its turn starts", "", nil, "child_exited", "exited"},
		{"stopped before it asks", "is stopped when its turn starts", "", nil, "cut child_exited", "unresponsive"},
		{"wedged before it asks", "ignores the start of its turn", "", nil, "cut child_exited", "unresponsive"},
		{"killed before the answer", "", "asked", kill, "child_exited", "exited"},
		{"stopped before the answer", "", "asked", stop, "whole", "unresponsive"},
		{"killed in the answer", "", "answering", kill, "cut child_exited", "exited"},
		{"stopped in the answer", "", "answering", stop, "whole", "unresponsive"},
		{"wedged in the answer", "ignores everything when it has asked", "", nil, "whole", "unresponsive"},
		{"killed after the answer", "", "answered", kill, "whole", "exited"},
		{"stopped after the answer", "", "answered", stop, "whole", "unresponsive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			f := newFaulty(t)
			f.set(tt.fault)
			up := newUpstream(t)
			d := start(t, "POOL_SIZE=1", "CODEX_BIN="+f.path, "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_STOP_GRACE_MS=300", "POOL_PROBE_MS=200", "POOL_PROBE_TIMEOUT_MS=1000")
			f.set("") // the next is real
			child := d.children()[0]
			at := func(r *http.Request, step string) {
				if step != tt.step {
					return
				}
				tt.act(child)
				if step != "answered" && tt.reason == "exited" {
					<-r.Context().Done() // the death must end the request
				}
			}
			up.Script(func(w http.ResponseWriter, r *http.Request) {
				at(r, "asked")
				s := codextest.StartStream(w)
				s.Begin()
				s.Delta("one ")
				at(r, "answering")
				s.Delta("two")
				s.End()
				at(r, "answered")
			}, codextest.Text("ok"))
			if got := d.outcome(); got != tt.want {
				t.Errorf("the client sees %q, want %q", got, tt.want)
			}
			eventually(t, time.Minute, "death by "+tt.reason, func() bool {
				return d.metrics()[`codexpool_child_deaths_total{reason="`+tt.reason+`"}`] == 1
			})
			d.full(1)
			if got := d.outcome(); got != "whole" {
				t.Errorf("the next client sees %q", got)
			}
			if n, want := len(up.Bodies()), map[bool]int{true: 1, false: 2}[strings.HasSuffix(tt.name, "before it asks")]; n != want {
				t.Errorf("%d requests reached the provider, want %d", n, want)
			}
		})
	}
}

// TestProviderThatNeverEndsATurnIsAskedAFewTimesAtMost: "end_turn":false has Codex ask
// again, for ever.
func TestProviderThatNeverEndsATurnIsAskedAFewTimesAtMost(t *testing.T) {
	t.Parallel()
	goesOn := func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Delta("on ")
		s.Event(map[string]any{"type": "response.completed", "response": map[string]any{"id": "r", "end_turn": false}})
	}
	for choice, most := range map[string]int{"relay": 1, "direct": 9} { // the ninth may be on its way when the eighth is the last
		t.Run(choice, func(t *testing.T) {
			up := codextest.NewUpstream(t, goesOn)
			environ := []string{"POOL_SIZE=1", "CODEX_UPSTREAM=" + up.URL + "/v1"}
			if choice == "direct" {
				environ = append(environ, "CODEX_UPSTREAM=direct", "CODEX_HOME="+directHome(t, up.URL+"/v1"))
			}
			d := start(t, environ...)
			if got := d.outcome(); got != "whole" {
				t.Errorf("the client sees %q", got)
			}
			d.full(1)
			if n := len(up.Bodies()); n > most {
				t.Errorf("the provider was asked %d times", n)
			}
			if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != 1 {
				t.Errorf("%v children were started", got)
			}
		})
	}
}

// TestRequestThatAStoppedChildDoesNotReadIsWholeOnAnother: a child that is stopped while
// it is idle gets a conversation and reads nothing of it.
func TestRequestThatAStoppedChildDoesNotReadIsWholeOnAnother(t *testing.T) {
	t.Parallel()
	for _, choice := range []string{"relay", "direct"} {
		t.Run(choice, func(t *testing.T) {
			t.Parallel()
			up := codextest.NewUpstream(t, codextest.Text("ok"))
			environ := []string{"POOL_SIZE=1", "CODEX_UPSTREAM=" + up.URL + "/v1", "CODEX_STOP_GRACE_MS=300"}
			if choice == "direct" {
				environ = append(environ, "CODEX_UPSTREAM=direct", "CODEX_HOME="+directHome(t, up.URL+"/v1"))
			}
			d := start(t, environ...)
			syscall.Kill(d.children()[0], syscall.SIGSTOP)
			if got := d.outcome(); got != "whole" {
				t.Errorf("the client sees %q", got)
			}
			if all := up.Bodies(); len(all) != 1 || codextest.LastUserText(all[0]) != "hi" {
				t.Errorf("%d requests reached the provider: %q", len(all), all)
			}
		})
	}
}

// directHome is a CODEX_HOME whose config.toml names a provider.
func directHome(t *testing.T, baseURL string) string {
	t.Helper()
	home := codextest.Workdir(t)
	config := `model_provider = "mine"
[model_providers.mine]
name = "mine"
base_url = "` + baseURL + `"
wire_api = "responses"
`
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return home
}

// TestTurnsLeaveNoFilesInAHome has turns with all that a child might store: images that
// come and go, calls, a plan. Only Codex's own databases may grow.
func TestTurnsLeaveNoFilesInAHome(t *testing.T) {
	t.Parallel()
	picture := func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Event(map[string]any{"type": "response.output_item.done", "output_index": 0, "item": map[string]any{
			"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
		}})
		s.Delta("here")
		s.End()
	}
	up := newUpstream(t, codextest.Text("ok"))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	files := func() map[string]int64 {
		sizes := map[string]int64{}
		home := variableOf(t, d.children()[0], "HOME")
		filepath.WalkDir(home, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return nil // it may have just been removed
			}
			if name := e.Name(); !strings.Contains(name, ".sqlite") && name != "installation_id" {
				info, _ := e.Info()
				rel, _ := filepath.Rel(home, path)
				sizes[rel] = info.Size()
			}
			return nil
		})
		return sizes
	}
	const image = `{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}`
	before := files()
	for range 3 {
		up.Script(codextest.Text("ok"), picture, codextest.Calls(codex.ToolCall{ID: "c", Name: "update_plan", Arguments: `{"plan":[]}`}))
		for _, body := range []string{
			`{"messages":[{"role":"user","content":[{"type":"text","text":"look"},` + image + `]}]}`,
			chatBody("draw", true),
			`{"tools":[{"type":"function","function":{"name":"update_plan","parameters":{"type":"object"}}}],"messages":[{"role":"user","content":"plan"}]}`,
		} {
			res, err := d.post(body)
			if err != nil {
				t.Fatal(err)
			}
			if res.Body.Close(); res.StatusCode != 200 {
				t.Errorf("status %d", res.StatusCode)
			}
		}
	}
	d.full(1)
	if diff := cmp.Diff(before, files()); diff != "" || len(before) == 0 {
		t.Errorf("(-before +after)\n%s", diff)
	}
}
