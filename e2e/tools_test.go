package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// missingVar names a file that lists what to install for the tests that were skipped.
// The end of make test prints it.
const missingVar = "CODEXPOOL_E2E_MISSING"

// needs finds a program of Debian's package of the same name, also where PATH is not
// root's. Where it is missing, the test is skipped. CI has them all, so there it fails.
func needs(t *testing.T, program string) (path string) {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	install := "apt-get install " + program
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
