package codex_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/codex/lean"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

// These tests check the real CLI's side of the contract. They fail when a new pinned
// version behaves in another way.

func message(role, kind, text string) json.RawMessage {
	return object(map[string]any{"type": "message", "role": role, "content": []any{map[string]any{"type": kind, "text": text}}})
}

func object(fields map[string]any) json.RawMessage {
	b, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return b
}

func TestUpstreamGetsOnlyTheCallersMessages(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	odd := "tabs\tand\nnewlines \u2028 \"quotes\" <b>&amp; \U0001F9EA \u0001"
	conversation := []json.RawMessage{
		message("developer", "input_text", "system first"),
		message("developer", "input_text", "then developer"),
		message("user", "input_text", "one"),
		message("assistant", "output_text", "two"),
		message("user", "input_text", odd),
	}
	for _, items := range [][]json.RawMessage{{codextest.UserItem("hello")}, conversation} {
		if _, err := run(t, c, codex.TurnParams{Items: items}); err != nil {
			t.Fatal(err)
		}
	}

	bodies := up.Bodies()
	if len(bodies) != 2 {
		t.Fatalf("%d requests for 2 turns", len(bodies))
	}
	if len(bodies[0]) >= 2500 {
		t.Errorf("hello needs %d bytes upstream:\n%s", len(bodies[0]), bodies[0])
	}
	for i, items := range [][]json.RawMessage{{codextest.UserItem("hello")}, conversation} {
		var body struct {
			Instructions string
			Tools        []any
		}
		if err := json.Unmarshal(bodies[i], &body); err != nil {
			t.Fatal(err)
		}
		if body.Instructions != "" || len(body.Tools) != 0 {
			t.Errorf("instructions %q, tools %v", body.Instructions, body.Tools)
		}
		arrivesAs(t, items, bodies[i])
	}
}

func TestUpstreamGetsAHistoryOfCallsUnchanged(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	call := func(id, name, arguments string) json.RawMessage {
		return object(map[string]any{"type": "function_call", "call_id": id, "name": name, "arguments": arguments})
	}
	result := func(id string, output any) json.RawMessage {
		return object(map[string]any{"type": "function_call_output", "call_id": id, "output": output})
	}
	p := codex.TurnParams{
		Tools: []codex.Tool{{Name: "weather"}},
		Items: []json.RawMessage{
			codextest.UserItem("weather and time?"),
			message("assistant", "output_text", "Let me look."),
			call("call_1", "weather", `{"city":  "Oslo"}`), call("call_2", "forgotten", `{"zone": `), call("call 3", "weather", ""),
			result("call_2", ""), result("call_1", "odd \u2028 \"<b>&amp; \U0001F9EA \u0001"),
			result("call 3", []any{map[string]any{"type": "input_text", "text": "a"}, map[string]any{"type": "input_text", "text": "b"}}),
			codextest.UserItem("all of it"),
			call("call_4", "weather", "{}"), result("call_4", strings.Repeat("long ", 1<<20/5)),
		},
	}
	events, err := run(t, c, p)
	want := []string{"codex.TextDelta{Text:ok}", "codex.Usage{Input:7 Cached:0 Output:1 Reasoning:0 Total:8}", "codex.Completed{Finish:stop}"}
	if diff := cmp.Diff(want, events); diff != "" || err != nil {
		t.Fatalf("%v (-want +got)\n%s", err, diff)
	}
	arrivesAs(t, p.Items, up.Bodies()[0])
}

// arrivesAs asserts that the input of a request is the items, but for the ids
// that Codex gives to them.
func arrivesAs(t *testing.T, items []json.RawMessage, request []byte) {
	t.Helper()
	var body struct{ Input []map[string]any }
	if err := json.Unmarshal(request, &body); err != nil {
		t.Fatal(err)
	}
	for _, item := range body.Input {
		delete(item, "id")
	}
	var want []map[string]any
	for _, item := range items {
		var w map[string]any
		json.Unmarshal(item, &w)
		want = append(want, w)
	}
	if diff := cmp.Diff(want, body.Input); diff != "" {
		t.Errorf("(-sent +arrived)\n%.2000s", diff)
	}
}

func TestMetaReachesTheUpstream(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	p := hello()
	p.Meta = map[string]string{"codexpool_key": "k-1234"}
	if _, err := run(t, c, p); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(up.Bodies()[0]), `\"codexpool_key\":\"k-1234\"`) {
		t.Errorf("not in %s", up.Bodies()[0])
	}
}

func TestThreadsAreClosedAfterTheirTurns(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t)
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	withTools := hello()
	withTools.Tools = []codex.Tool{{Name: "clock"}}
	for range 5 {
		up.Script(codextest.Text("ok"), codextest.Calls(codex.ToolCall{ID: "a", Name: "clock", Arguments: "{}"}, codex.ToolCall{ID: "b", Name: "clock", Arguments: "{}"}))
		for _, p := range []codex.TurnParams{hello(), withTools} {
			if _, err := run(t, c, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, err := c.Ping(t.Context())
	if err != nil || h.LiveThreads > 2 || h.ActiveTurns != 0 || h.ResidentBytes == 0 { // the ready one, and one that is being closed
		t.Errorf("%+v, %v", h, err)
	}
}

// withCatalog is a child with the whole catalog, as direct children have it, and the
// models in it.
func withCatalog(t *testing.T, baseURL string) (cmd codex.Command, models []codex.Model) {
	t.Helper()
	cmd = codextest.Real(t, baseURL)
	original, models, err := codex.Catalog(t.Context(), cmd.Path, t.TempDir(), cmd.Env)
	if err != nil {
		t.Fatal(err)
	}
	catalog, err := lean.Catalog(original)
	if err != nil {
		t.Fatal(err)
	}
	child := lean.Direct(cmd.CodexHome(), cmd.Files["config.toml"], catalog)
	cmd.Args, cmd.Direct = append(cmd.Args, child.Args...), true
	maps.Copy(cmd.Files, child.Files)
	return cmd, models
}

func TestCatalogListsTheModelsOfAChild(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(upstream.Echo(0))
	defer server.Close()
	cmd, want := withCatalog(t, server.URL+"/v1")
	got, err := start(t, cmd).Models(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if !bytes.Contains(want[i].Entry, []byte(want[i].ID)) {
			t.Errorf("%s is %.100s in the catalog", want[i].ID, want[i].Entry)
		}
		want[i].Entry = nil // the child does not tell it
	}
	if diff := cmp.Diff(got, want); diff != "" || len(want) == 0 {
		t.Errorf("(-child +catalog)\n%s", diff)
	}
}

func TestChildBehindARelayHasOneModel(t *testing.T) {
	t.Parallel()
	cmd := codextest.Real(t, "http://127.0.0.1:1/v1")
	models, err := start(t, cmd).Models(t.Context())
	if err != nil || len(models) != 1 || !models[0].Default || len(cmd.Files["models.json"]) > 2000 {
		t.Errorf("%+v in %d bytes, %v", models, len(cmd.Files["models.json"]), err)
	}
}

func TestModelEffortAndSummaryReachTheUpstream(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	cmd, models := withCatalog(t, up.URL+"/v1")
	c := start(t, cmd)
	last := models[len(models)-1]
	p := hello()
	p.Model, p.Effort, p.Summary = last.ID, last.Efforts[len(last.Efforts)-1], "detailed"
	if _, err := run(t, c, p); err != nil {
		t.Fatal(err)
	}
	var body struct {
		Model     string
		Reasoning struct{ Effort, Summary string }
	}
	if err := json.Unmarshal(up.Bodies()[0], &body); err != nil {
		t.Fatal(err)
	}
	if body.Model != p.Model || body.Reasoning.Effort != p.Effort || body.Reasoning.Summary != p.Summary {
		t.Errorf("sent %s %s %s, arrived %+v", p.Model, p.Effort, p.Summary, body)
	}
}

func TestCallsCostOneRequestOfTheModel(t *testing.T) {
	t.Parallel()
	calls := []codex.ToolCall{{ID: "call_1", Name: "weather", Arguments: `{"city":  "Oslo"}`}, {ID: "call_2", Name: "clock", Arguments: `{}`}}
	up := codextest.NewUpstream(t, codextest.Calls(calls...))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	p := hello()
	p.Tools = []codex.Tool{
		{Name: "weather", Description: "of a city", Parameters: json.RawMessage(`{"type":"object","properties":{"city":{"type":"string"}}}`)},
		{Name: "clock"},
	}
	events, err := run(t, c, p)
	want := []string{fmt.Sprintf("codex.ToolCalls{Calls:%+v}", calls), "codex.Usage{Input:7 Cached:0 Output:2 Reasoning:0 Total:9}", "codex.Completed{Finish:tool_calls}"}
	if diff := cmp.Diff(want, events); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if n := len(up.Bodies()); n != 1 || !c.Reusable() {
		t.Errorf("%d requests; reusable: %v, %v", n, c.Reusable(), c.Err())
	}
	var body struct{ Tools []map[string]any }
	if err := json.Unmarshal(up.Bodies()[0], &body); err != nil {
		t.Fatal(err)
	}
	tool := func(name, description string, properties map[string]any) map[string]any {
		return map[string]any{
			"type": "function", "name": name, "description": description, "strict": false,
			"parameters": map[string]any{"type": "object", "properties": properties},
		}
	}
	tools := []map[string]any{tool("weather", "of a city", map[string]any{"city": map[string]any{"type": "string"}}), tool("clock", "", map[string]any{})}
	if diff := cmp.Diff(tools, body.Tools); diff != "" {
		t.Errorf("(-sent +arrived)\n%s", diff)
	}
}

// TestHistoryArrivesThoughTheTurnIsStartedInTheSameWrite: a real child must not start a
// turn before it has taken the history that was written just before, however long.
func TestHistoryArrivesThoughTheTurnIsStartedInTheSameWrite(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	for i := range 30 {
		p := hello()
		p.Items = []json.RawMessage{codextest.UserItem(strings.Repeat("x", i*i*1000)), codextest.UserItem(fmt.Sprint("last of turn ", i))}
		if _, err := run(t, c, p); err != nil {
			t.Fatal(err)
		}
		body := string(up.Bodies()[i])
		if !strings.Contains(body, fmt.Sprintf(`"last of turn %d"`, i)) || len(body) < i*i*1000 {
			t.Errorf("turn %d: %d bytes arrived", i, len(body))
		}
	}
}

// TestRelayedTurnCostsOneRequestWhateverTheAnswer runs turns of a real child behind
// the relay. The child gets an empty answer, so it acts on nothing: not on calls that it
// does not know, nor on a provider that wants to be asked again.
func TestRelayedTurnCostsOneRequestWhateverTheAnswer(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t)
	base, err := url.Parse(up.URL + "/v1")
	if err != nil {
		t.Fatal(err)
	}
	relay := upstream.NewRelay(upstream.Provider{Base: base}, http.DefaultTransport, upstream.Hooks{})
	server := httptest.NewServer(relay)
	t.Cleanup(server.Close)
	c := start(t, codextest.Real(t, server.URL+"/v1"))
	goesOn := func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Delta("go on")
		s.Event(map[string]any{"type": "response.completed", "response": map[string]any{"id": "r", "end_turn": false}})
	}
	turns := 0
	for name, answer := range map[string]http.HandlerFunc{
		"text":                     codextest.Text("one ", "two"),
		"an unknown function":      codextest.Calls(codex.ToolCall{ID: "c", Name: "nope", Arguments: `{}`}),
		"a function of the CLI":    codextest.Calls(codex.ToolCall{ID: "c", Name: "exec_command", Arguments: `{"cmd":"id"}`}),
		"arguments without JSON":   codextest.Calls(codex.ToolCall{ID: "c", Name: "nope", Arguments: `{"a`}),
		"an answer that goes on":   goesOn,
		"an error of the provider": codextest.Status(500, "{}"),
	} {
		up.Script(answer)
		call := relay.Prepare(t.Context(), func() upstream.Request {
			return upstream.Request{Overrides: upstream.Overrides{"model": json.RawMessage(`"m"`)}}
		}, func() {})
		p := hello()
		p.Meta = map[string]string{upstream.MetaKey: call.Key}
		events, err := run(t, c, p)
		if got := fmt.Sprint(events, err); got != "[codex.Completed{Finish:stop}] <nil>" || !c.Reusable() {
			t.Errorf("%s: the child's turn: %s", name, got)
		}
		call.Done()
		if turns++; len(up.Bodies()) != turns {
			t.Fatalf("%s: %d requests for %d turns", name, len(up.Bodies()), turns)
		}
	}
}

func TestCallsDoNotHideAFailureOfTheUpstream(t *testing.T) {
	t.Parallel()
	call := codex.ToolCall{ID: "c", Name: "clock", Arguments: `{}`}
	up := codextest.NewUpstream(t)
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	for name, test := range map[string]struct {
		end  func(*codextest.Stream)
		want string
	}{
		"it reports an error": {func(s *codextest.Stream) { s.Fail("rate_limit_exceeded", "slow down") }, "[] turn failed: rateLimitExceeded"},
		"it cuts the answer":  {func(s *codextest.Stream) { s.Incomplete("max_output_tokens") }, fmt.Sprintf("[codex.ToolCalls{Calls:[%+v]} codex.Completed{Finish:length}] <nil>", call)},
	} {
		up.Script(func(w http.ResponseWriter, r *http.Request) {
			s := codextest.StartStream(w)
			s.Begin()
			s.Call(call)
			test.end(s)
		})
		p := hello()
		p.Tools, p.Tick = []codex.Tool{{Name: call.Name}}, 100*time.Millisecond
		events, err := run(t, c, p)
		if got := fmt.Sprint(events, " ", err); got != test.want || !c.Reusable() {
			t.Errorf("%s: got %s, want %s; reusable: %v", name, got, test.want, c.Reusable())
		}
	}
	if n := len(up.Bodies()); n != 2 {
		t.Errorf("%d requests for 2 turns", n)
	}
}

func TestCallsEndTheRequestWhenTheReaderStops(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	up := codextest.NewUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Call(codex.ToolCall{ID: "c", Name: "clock", Arguments: `{}`})
		s.Delta("not over yet")
		<-r.Context().Done()
		close(gone)
	}, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	p := hello()
	p.Tools = []codex.Tool{{Name: "clock"}}
	for e, err := range c.Turn(t.Context(), p) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := e.(codex.TextDelta); ok {
			break
		}
	}
	<-gone
	if events, err := run(t, c, hello()); err != nil || events[0] != "codex.TextDelta{Text:ok}" {
		t.Errorf("then %v, %v", events, err)
	}
}

func TestToolsThatTheChildAccepts(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	schema := func(s string) json.RawMessage { return json.RawMessage(s) }
	for name, test := range map[string]struct {
		tools []codex.Tool
		want  string // the problem, "" for none
	}{
		"no schema":            {tools: []codex.Tool{{Name: "f"}}},
		"an empty schema":      {tools: []codex.Tool{{Name: "f", Parameters: schema(`{}`)}}},
		"a broken string":      {tools: []codex.Tool{{Name: "f", Description: "\xff", Parameters: schema(`{"description":"\ud800` + "\xff" + `"}`)}}},
		"an unknown type":      {tools: []codex.Tool{{Name: "f", Parameters: schema(`{"type":"bogus"}`)}}},
		"as deep as it reads":  {tools: []codex.Tool{{Name: "f", Parameters: schema(strings.Repeat(`{"not":`, 122) + `{}` + strings.Repeat(`}`, 122))}}},
		"a level more":         {[]codex.Tool{{Name: "f", Parameters: schema(strings.Repeat(`{"not":`, 123) + `{}` + strings.Repeat(`}`, 123))}}, "the parameters of f nest deeper than 123 levels"},
		"null for a schema":    {[]codex.Tool{{Name: "f", Parameters: schema(`null`)}}, "dynamic tool input schema is not supported for f: invalid type: null, expected struct JsonSchema"},
		"a list of properties": {[]codex.Tool{{Name: "f", Parameters: schema(`{"properties":[]}`)}}, "dynamic tool input schema is not supported for f: invalid type: sequence, expected a map"},
		"names of Codex's own": {tools: []codex.Tool{{Name: "shell"}, {Name: "update_plan"}, {Name: "apply_patch"}, {Name: "exec_command"}, {Name: "mcp"}, {Name: "mcp__x__y"}}},
		"a long name":          {tools: []codex.Tool{{Name: strings.Repeat("x", 128)}}},
		"a name too long":      {[]codex.Tool{{Name: strings.Repeat("x", 129)}}, "dynamic tool name must be at most 128 characters to match Responses API: " + strings.Repeat("x", 129)},
		"no name":              {[]codex.Tool{{}}, "dynamic tool name must not be empty"},
		"a dot":                {[]codex.Tool{{Name: "a.b"}}, "dynamic tool name must match ^[a-zA-Z0-9_-]+$ to match Responses API: a.b"},
		"the same name twice":  {[]codex.Tool{{Name: "f"}, {Name: "f"}}, "duplicate dynamic tool name: f"},
	} {
		p := hello()
		p.Tools = test.tools
		_, err := run(t, c, p)
		problem := ""
		if failed := (*codex.ToolsError)(nil); errors.As(err, &failed) {
			problem, err = failed.Problem, nil
		}
		if problem != test.want || err != nil || !c.Reusable() {
			t.Errorf("%s: %q, %v, want %q; reusable: %v", name, problem, err, test.want, c.Reusable())
		}
	}
}

func TestReasoningAndCommentaryAreNoPartOfTheAnswer(t *testing.T) {
	t.Parallel()
	call := codex.ToolCall{ID: "c", Name: "clock", Arguments: `{}`}
	up := codextest.NewUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		item := func(item map[string]any, delta string, more map[string]any) {
			s.Event(map[string]any{"type": "response.output_item.added", "item": item})
			s.Event(map[string]any{"type": delta, "item_id": item["id"], "summary_index": 0, "content_index": 0, "delta": item["id"]})
			maps.Copy(item, more)
			s.Event(map[string]any{"type": "response.output_item.done", "item": item})
		}
		item(map[string]any{"type": "reasoning", "id": "thought", "summary": []any{}}, "response.reasoning_summary_text.delta",
			map[string]any{"summary": []any{map[string]any{"type": "summary_text", "text": "thought"}}, "encrypted_content": "x"})
		for _, phase := range []string{"commentary", "final_answer"} {
			item(map[string]any{"type": "message", "id": phase, "role": "assistant", "phase": phase, "content": []any{}}, "response.output_text.delta",
				map[string]any{"content": []any{map[string]any{"type": "output_text", "text": phase, "annotations": []any{}}}})
		}
		s.Call(call)
		s.End()
	})
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	p := hello()
	p.Tools = []codex.Tool{{Name: call.Name}}
	events, err := run(t, c, p)
	want := []string{
		"codex.ReasoningDelta{Text:thought}", "codex.ReasoningDelta{Text:\n\ncommentary}", "codex.TextDelta{Text:final_answer}",
		fmt.Sprintf("codex.ToolCalls{Calls:[%+v]}", call), "codex.Usage{Input:7 Cached:0 Output:1 Reasoning:0 Total:8}", "codex.Completed{Finish:tool_calls}",
	}
	if diff := cmp.Diff(want, events); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

func TestVersionFailsForAnotherProgram(t *testing.T) {
	if v, err := codex.Version(t.Context(), codextest.Binary(t), t.TempDir(), nil); err != nil || v != codex.Pinned {
		t.Errorf("%q, %v", v, err)
	}
	if _, err := codex.Version(t.Context(), "/bin/echo", t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "not the Codex CLI") {
		t.Errorf("got %v", err)
	}
}

func TestVersionKillsAWrapperThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "codex")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 1000 & echo $! >"+path+".pid\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		codextest.Until(t, "child of the wrapper", func() bool { pid, _ := os.ReadFile(path + ".pid"); return len(pid) > 1 })
		cancel(codex.ErrUnresponsive)
	}()
	if _, err := codex.Version(ctx, path, t.TempDir(), []string{"PATH=" + os.Getenv("PATH")}); !errors.Is(err, codex.ErrUnresponsive) {
		t.Errorf("got %v", err)
	}
	pid, err := os.ReadFile(path + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	codextest.Until(t, "end of it", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func TestPinnedIsTheSameEverywhere(t *testing.T) {
	for _, file := range []string{"package.json", "package-lock.json"} {
		data, err := os.ReadFile(filepath.Join("..", "configs", "codex", file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(data), `"@openai/codex": "`+codex.Pinned+`"`) {
			t.Errorf("%s does not pin %s", file, codex.Pinned)
		}
		if strings.Contains(string(data), `"resolved"`) {
			t.Errorf("%s holds download addresses", file)
		}
	}
}

// schema is the part of a JSON schema that the contract test reads.
type schema struct {
	Properties map[string]schema
	Required   []string
	Enum       []string
	OneOf      []schema
	Ref        string `json:"$ref"`
}

func TestProtocolIsInTheSchemasOfTheCLI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(codextest.Binary(t), "app-server", "generate-json-schema", "--experimental", "--out", dir)
	cmd.Env = []string{"HOME=" + dir, "CODEX_HOME=" + dir}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	requests := readSchema(t, filepath.Join(dir, "ClientRequest.json"))
	definitions := readDefinitions(t, filepath.Join(dir, "ClientRequest.json"))
	for method, params := range codex.Sent {
		i := slices.IndexFunc(requests.OneOf, func(s schema) bool { return slices.Contains(s.Properties["method"].Enum, method) })
		if i < 0 {
			t.Errorf("the CLI has no method %s", method)
			continue
		}
		known := definitions[strings.TrimPrefix(requests.OneOf[i].Properties["params"].Ref, "#/definitions/")]
		for _, field := range fieldNames(t, params) {
			if _, ok := known.Properties[field]; !ok {
				t.Errorf("%s has no param %s", method, field)
			}
		}
		for _, field := range known.Required {
			if !slices.Contains(fieldNames(t, params), field) {
				t.Errorf("%s needs the param %s", method, field)
			}
		}
	}
	holds(t, filepath.Join(dir, "ServerNotification.json"), append(codex.Read, codex.Unread...))
	holds(t, filepath.Join(dir, "ServerRequest.json"), codex.Answered)
	for file, fields := range codex.Schemas {
		known := readSchema(t, filepath.Join(dir, file))
		for _, field := range fields {
			if _, ok := known.Properties[field]; !ok {
				t.Errorf("%s has no %s", file, field)
			}
		}
	}
}

// holds asserts that the schema's union has each method.
func holds(t *testing.T, path string, methods []string) {
	t.Helper()
	union := readSchema(t, path)
	for _, method := range methods {
		if !slices.ContainsFunc(union.OneOf, func(s schema) bool { return slices.Contains(s.Properties["method"].Enum, method) }) {
			t.Errorf("%s has no %s", filepath.Base(path), method)
		}
	}
}

func readSchema(t *testing.T, path string) (s schema) {
	t.Helper()
	readJSON(t, path, &s)
	return s
}

func readDefinitions(t *testing.T, path string) map[string]schema {
	t.Helper()
	var s struct{ Definitions map[string]json.RawMessage }
	readJSON(t, path, &s)
	definitions := map[string]schema{}
	for name, data := range s.Definitions {
		var d schema
		if json.Unmarshal(data, &d) == nil { // some use forms that we have no need to read
			definitions[name] = d
		}
	}
	return definitions
}

func readJSON(t *testing.T, path string, to any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func fieldNames(t *testing.T, params any) []string {
	t.Helper()
	data, err := json.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	return names
}

// A result of a function may hold an image.
func TestResultsWithImagesArrive(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	c := start(t, codextest.Real(t, up.URL+"/v1"))
	const pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
	items := []json.RawMessage{
		object(map[string]any{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}),
		object(map[string]any{"type": "function_call_output", "call_id": "c", "output": []any{
			map[string]any{"type": "input_text", "text": "here"},
			map[string]any{"type": "input_image", "image_url": pixel, "detail": "original"},
		}}),
	}
	if _, err := run(t, c, codex.TurnParams{Items: items}); err != nil {
		t.Fatal(err)
	}
	arrivesAs(t, items, up.Bodies()[0])
}
