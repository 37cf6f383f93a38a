// Package deploy checks what operators deploy, such as the Dockerfile, without
// deploying it: that needs neither a container engine nor a network. It is a module
// of its own because BuildKit, whose linter it uses, and Traefik and Compose, whose types
// it reads their files with, bring more dependencies than the rest of the project.
//
// Run it with -count=1: go test does not notice that a file outside of the module
// has changed, and would repeat an old result.
package deploy

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

const root = "../.." // of the repository, which is the build context

func TestDockerfileHasNoLintWarnings(t *testing.T) {
	text := read(t, "Dockerfile")
	source := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", text)
	source.Definition = &llb.Definition{} // the linter copies it, nil or not
	results, err := dockerfile2llb.DockerfileLint(t.Context(), text, dockerfile2llb.ConvertOpt{
		SourceMap:    source,
		MetaResolver: offline{},
	})
	if err != nil {
		t.Fatal(err)
	}
	if results.Error != nil {
		t.Errorf("Dockerfile:%d: %s", line(&results.Error.Location), results.Error.Message)
	}
	for _, w := range results.Warnings {
		t.Errorf("Dockerfile:%d: %s: %s", line(w.Location), w.RuleName, w.Detail)
	}
}

func TestBaseImagesHaveExactTags(t *testing.T) {
	// A full version or a date: golang:1.26 is another image next month.
	exact := regexp.MustCompile(`:[^/:@]*(\d+\.\d+\.\d+|\d{8})[^/:@]*(@sha256:[0-9a-f]{64})?$`)
	earlier := map[string]bool{}
	check := func(instruction, image string) {
		if !earlier[image] && !exact.MatchString(image) {
			t.Errorf("%s%s: neither an earlier stage nor an exact tag", instruction, image)
		}
	}
	for _, stage := range stages(t) {
		check("FROM ", stage.BaseName)
		for _, command := range stage.Commands {
			if c, ok := command.(*instructions.CopyCommand); ok && c.From != "" {
				check("COPY --from=", c.From)
			}
		}
		earlier[stage.Name] = true
	}
}

func TestImageRunsAsNumberedUserOtherThanRoot(t *testing.T) {
	user, _, _ := strings.Cut(last[*instructions.UserCommand](t).User, ":")
	if uid, err := strconv.Atoi(user); err != nil || uid == 0 {
		t.Errorf("USER %s, want a uid other than 0", user)
	}
}

func TestImageReportsItsHealth(t *testing.T) {
	want := []string{"CMD", "codexpool", "health"}
	if got := last[*instructions.HealthCheckCommand](t).Health.Test; !slices.Equal(got, want) {
		t.Errorf("HEALTHCHECK %q, want %q", got, want)
	}
}

func TestImageStartsWithTini(t *testing.T) {
	entrypoint := last[*instructions.EntrypointCommand](t)
	if entrypoint.PrependShell || entrypoint.CmdLine[0] != "/usr/bin/tini" {
		t.Errorf("ENTRYPOINT %q (in a shell: %v), want tini first", entrypoint.CmdLine, entrypoint.PrependShell)
	}
}

// The image is behind a load balancer more often than not, and README's lines must fit it.
func TestReadmeRunsTheImageWithLimitsThatFitIt(t *testing.T) {
	readme := string(read(t, "README.md"))
	_, line, _ := strings.Cut(readme, "    docker run ")
	line, _, _ = strings.Cut(line, "    docker stop")
	image := map[string]string{}
	for _, e := range last[*instructions.EnvCommand](t).Env {
		image[e.Key] = e.Value
	}
	for _, option := range []string{" --read-only ", " --tmpfs " + image["PROXY_CODEX_WORKDIR"] + ":size=", ",uid=10001,"} {
		if !strings.Contains(line, option) {
			t.Errorf("no %q in docker run %s", option, line)
		}
	}
	number := func(text, pattern string) int {
		t.Helper()
		n, err := strconv.Atoi(append(regexp.MustCompile(pattern).FindStringSubmatch(text), "", "")[1])
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
		return n
	}
	reference := string(read(t, "configs/REFERENCE.md"))
	stop := number(image["PROXY_PRESTOP_MS"], `^(\d+)$`) + number(reference, "`PROXY_DRAIN_MS` \\| `(\\d+)`") + 15000
	if got := number(line, `--stop-timeout (\d+)`) * 1000; got < stop {
		t.Errorf("docker run stops after %d ms, and the image takes %d", got, stop)
	}
	if got, size := number(line, `--pids-limit (\d+)`), number(reference, "`POOL_SIZE` \\| `(\\d+)`"); got < 38*size+30 {
		t.Errorf("the pids limit %d is too small for %d children", got, size)
	}
	if !strings.Contains(readme, "PROXY_PRESTOP_MS="+image["PROXY_PRESTOP_MS"]) {
		t.Error("README names another PROXY_PRESTOP_MS than the image has")
	}
}

func TestDockerfileCopiesWhatIsInTheBuildContext(t *testing.T) {
	ignored := ignore(t)
	for _, stage := range stages(t) {
		for _, command := range stage.Commands {
			c, ok := command.(*instructions.CopyCommand)
			if !ok || c.From != "" {
				continue
			}
			for _, source := range c.SourcePaths {
				found, err := filepath.Glob(filepath.Join(root, source))
				if err != nil || len(found) == 0 {
					t.Errorf("COPY %s: there is no such file (%v)", source, err)
				}
				for _, path := range found {
					if ignored(path) {
						t.Errorf("COPY %s: .dockerignore excludes it", source)
					}
				}
			}
		}
	}
}

// COPY . . names no files: a package whose embedded file
// .dockerignore excludes would fail in the image's build alone.
func TestBuildContextHoldsEverySourceOfTheProgram(t *testing.T) {
	list := exec.Command("go", "list", "-deps", "-f",
		`{{$dir := .Dir}}{{with .Module}}{{if .Main}}{{range $.GoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}{{range $.EmbedFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}{{end}}{{end}}`,
		"./cmd/codexpool")
	list.Dir = root
	// What the image is built for, whatever this test runs on.
	list.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.TrimSpace(string(out))
	if files == "" {
		t.Fatal("go list names no file")
	}
	ignored := ignore(t)
	for path := range strings.Lines(files) {
		if path = strings.TrimSpace(path); ignored(path) {
			t.Errorf("%s: the program needs it, and .dockerignore excludes it", path)
		}
	}
}

// offline stands for the registry: any image is there, for any platform.
type offline struct{}

func (offline) ResolveImageConfig(_ context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	p := opt.ImageOpt.Platform
	return ref, "", fmt.Appendf(nil, `{"os":%q,"architecture":%q,"variant":%q,"config":{"Env":["PATH=/bin"]}}`, p.OS, p.Architecture, p.Variant), nil
}

// ignore makes the function that reports whether .dockerignore excludes a path.
func ignore(t *testing.T) func(path string) bool {
	t.Helper()
	patterns, err := ignorefile.ReadAll(bytes.NewReader(read(t, ".dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	return func(path string) bool {
		t.Helper()
		abs, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(top, abs)
		if err != nil {
			t.Fatal(err)
		}
		out, err := matcher.MatchesOrParentMatches(rel)
		if err != nil {
			t.Fatal(err)
		}
		return out && rel != "." // the context itself is always there
	}
}

// last is the command of its kind that counts: the final one of the final stage.
func last[T instructions.Command](t *testing.T) (found T) {
	t.Helper()
	all := stages(t)
	for _, command := range slices.Backward(all[len(all)-1].Commands) {
		if c, ok := command.(T); ok {
			return c
		}
	}
	t.Fatalf("the final stage has no %T", found)
	return found
}

func stages(t *testing.T) []instructions.Stage {
	t.Helper()
	parsed, err := parser.Parse(bytes.NewReader(read(t, "Dockerfile")))
	if err != nil {
		t.Fatal(err)
	}
	found, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// line is the line where a finding begins; 0 where the linter names none.
func line(l *pb.Location) int32 {
	if l == nil || len(l.Ranges) == 0 {
		return 0
	}
	return l.Ranges[0].Start.Line
}
