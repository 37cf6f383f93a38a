package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// missingVar names a file that lists what to install for the tests that were skipped.
// The end of make test prints it.
const missingVar = "CODEXPOOL_E2E_MISSING"

// installed finds a program of Debian's package of the same name, also where PATH is not
// root's. Where it is missing, the test is skipped. CI has them all, so there it fails.
func installed(t testing.TB, program string) (path string) {
	t.Helper()
	return needsOf(t, program, program)
}

// needsOf finds a program of another package.
func needsOf(t testing.TB, program, pkg string) (path string) {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	install := "apt-get install " + pkg
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: %s", program, install)
	}
	if list, err := os.OpenFile(os.Getenv(missingVar), os.O_APPEND|os.O_WRONLY, 0); err == nil {
		fmt.Fprintf(list, "%s: %s\n", t.Name(), install)
		list.Close()
	}
	t.Skipf("%s is missing: %s", program, install)
	return ""
}

const needyVar = "CODEXPOOL_E2E_NEEDY" // makes the next test need a program that is missing

func TestMissingProgramSkipsATestThatIsListedAndFailsInCI(t *testing.T) {
	if os.Getenv(needyVar) != "" {
		installed(t, "no-such-program")
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, ci := range []string{"", "true"} {
		list := filepath.Join(t.TempDir(), "missing")
		if err := os.WriteFile(list, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.v", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), needyVar+"=1", programVar+"="+program, missingVar+"="+list, "CI="+ci)
		out, err := cmd.CombinedOutput()
		listed, _ := os.ReadFile(list)
		want := t.Name() + ": apt-get install no-such-program\n"
		if ci == "" && (err != nil || string(listed) != want) {
			t.Errorf("elsewhere: %v, listed %q\n%s", err, listed, out)
		}
		if ci != "" && (err == nil || len(listed) > 0) {
			t.Errorf("in CI: %v, listed %q\n%s", err, listed, out)
		}
	}
}
