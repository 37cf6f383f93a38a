package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// TestReleaseGoesForwardAndBackWithoutALoss replaces two daemons of the commit before, one
// after the other and under load, by this tree's, and these by the former. All have one env
// file, with a setting of a release that is not there yet, one ChatGPT login, which is
// refreshed after each step, and one folder for the homes of their children. BASE=COMMIT is
// another commit to come from. make test-deploy runs it.
func TestReleaseGoesForwardAndBackWithoutALoss(t *testing.T) {
	if os.Getenv("ROLLBACK") == "" {
		t.Skip("make test-deploy runs it")
	}
	g := newChatGPT(t, shortly)
	g.tokens.Rotate("rt-old")
	g.script(atThePaceOfAModel)
	tokens := []string{"rt-old"} // that were valid, in their order
	isRefreshed := func() {      // by either daemon
		t.Helper()
		next := fmt.Sprint("rt-", len(tokens))
		tokens = append(tokens, next)
		eventually(t, 20*time.Second, "refresh of the login to "+next, func() bool { return codextest.RefreshToken(t, g.home) == next })
	}
	file := written(t, "codexpool.env", "CODEX_HOME="+g.home+"\nPOOL_OF_A_LATER_RELEASE=1\n")
	homes := codextest.Workdir(t)
	serve := "set -- serve --env-file '" + file + "'"
	before, now := withinOf(t, buildBefore(t), serve), within(t, serve)

	r := newReplicas(t, edges[slices.IndexFunc(edges, func(e edge) bool { return e.name == "haproxy" })], 2, before, append(g.env, "PROXY_CODEX_WORKDIR="+homes)...)
	isRefreshed()
	stop := r.load()
	for _, next := range []string{now, before} {
		r.binary = next
		for i := range r.daemons {
			r.restart(i)
			if got := r.daemons[i].total("codexpool_build_info", `version="`+versionBefore+`"`) == 1; got != (next == before) {
				t.Errorf("daemon %d is of the commit before: %v", i+1, got)
			}
			if want := "POOL_OF_A_LATER_RELEASE has no effect"; !strings.Contains(r.daemons[i].logged(), want) {
				t.Errorf("daemon %d does not warn: %s", i+1, want)
			}
			codextest.AuthFile(t, g.home, tokens[len(tokens)-1], shortly)
			isRefreshed()
		}
	}
	sent, failed := stop()
	t.Logf("%d completions, 4 daemons replaced, %d refreshes of the login", sent, len(tokens)-1)
	for _, err := range failed {
		t.Errorf("failed: %v", err)
	}
	for _, d := range r.daemons {
		d.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, d := range r.daemons {
		<-d.ended
	}
	if left, err := filepath.Glob(filepath.Join(homes, "daemon-*")); err != nil || len(left) > 0 {
		t.Errorf("homes remain: %q, %v", left, err)
	}
	if spent := g.tokens.Spent(); !slices.Equal(spent, tokens[:len(tokens)-1]) {
		t.Errorf("the refresh tokens that were spent are %q, and each of %q must be, but the last, and once", spent, tokens)
	}
	if got, want := codextest.RefreshToken(t, g.home), g.tokens.Issued(); got != want {
		t.Errorf("the login has the refresh token %s, and the next that is accepted is %s", got, want)
	}
}

// shortly is how long an access token lives that is to be refreshed at once, and serves
// until it is.
const shortly = 30 * time.Minute

// atThePaceOfAModel answers with [wordsOfAnswer], in a second.
func atThePaceOfAModel(w http.ResponseWriter, _ *http.Request) {
	s := codextest.StartStream(w)
	s.Begin()
	for _, word := range strings.SplitAfter(wordsOfAnswer, " ") {
		time.Sleep(100 * time.Millisecond)
		s.Delta(word)
	}
	s.End()
}

const versionBefore = "v0.0.1-before"

// buildBefore builds the daemon of the commit before this one, as [versionBefore]. Where
// there is no history, as in an archive or a shallow clone, it is this tree's.
func buildBefore(t *testing.T) (path string) {
	t.Helper()
	tree, commit := t.TempDir(), cmp.Or(os.Getenv(baseNameVar), "HEAD~1")
	unpack := exec.Command("sh", "-c", `git -C .. archive --output="$1/before.tar" "$0" && tar -C "$1" -xf "$1/before.tar"`, commit, tree)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Logf("there is no %s here, so both daemons are of this tree: %v\n%s", commit, err, out)
		tree = ".."
	}
	path = filepath.Join(t.TempDir(), "before")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-X main.release="+versionBefore, "-o", path, "./cmd/codexpool")
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", commit, err, out)
	}
	return path
}
