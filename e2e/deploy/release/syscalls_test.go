package release

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterVar makes this test binary another program: it allows itself only the system calls
// with these numbers, as SystemCallFilter does, and becomes the program of its arguments.
const filterVar = "CODEXPOOL_SYSTEM_CALLS"

func filtered(numbers string) error {
	runtime.LockOSThread()        // the filter is the thread's, which becomes the program
	program := []unix.SockFilter{ // linux/seccomp.h: the number is at 0, the architecture at 4
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
	}
	for number := range strings.SplitSeq(numbers, ",") {
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return err
		}
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(n), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	path, err := exec.LookPath(os.Args[1])
	if err != nil {
		return err
	}
	environ := slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, filterVar+"=") })
	return syscall.Exec(path, os.Args[1:], environ)
}

// systemCalls are the numbers of those in a set of systemd's.
func systemCalls(t *testing.T, set string) string {
	t.Helper()
	header, err := os.ReadFile("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]string{}
	for _, m := range regexp.MustCompile(`#define __NR_(\w+) (\d+)`).FindAllSubmatch(header, -1) {
		numbers[string(m[1])] = string(m[2])
	}
	var found []string
	for _, name := range members(t, set) {
		if n, here := numbers[name]; here && !slices.Contains(found, n) {
			found = append(found, n)
		}
	}
	if len(found) < 100 {
		t.Fatalf("%s has %d system calls here", set, len(found))
	}
	return strings.Join(found, ",")
}

// members are the names in a set, and in the sets that it has.
func members(t *testing.T, set string) (names []string) {
	t.Helper()
	out, err := exec.Command("systemd-analyze", "syscall-filter", set).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		switch name := strings.TrimSpace(line); {
		case name == "" || name == set || name[0] == '#':
		case name[0] == '@':
			names = append(names, members(t, name)...)
		default:
			names = append(names, name)
		}
	}
	return names
}
