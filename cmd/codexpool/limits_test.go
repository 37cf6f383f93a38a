package main

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// asOnThisMachine has what the kernel wrote on a machine without narrow limits.
func asOnThisMachine(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{}
	for _, path := range []string{"proc/self/limits", "proc/meminfo"} {
		if text, err := os.ReadFile("/" + path); err == nil {
			root[path] = &fstest.MapFile{Data: text}
		}
	}
	for path, text := range files {
		root[path] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

func TestLimitsThatAreTooSmallAreNamedWithBothNumbers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		user  int
		want  string // "" = nothing is too small
	}{
		{"none", nil, 0, ""},
		{"nothing can be read", map[string]string{"proc/self/limits": "", "proc/meminfo": ""}, 1, ""},
		{"no limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/pids.max": "max\n", "sys/fs/cgroup/memory.max": "max\n"}, 0, ""},
		{
			"a container of version 2",
			map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/pids.max": "100\n"},
			0,
			"POOL_SIZE=2 needs 106 processes and threads, and the limit of the control group (pids.max) is 100",
		},
		{
			"a group that is not the last",
			map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/pids.max": "90\n", "sys/fs/cgroup/a/b/pids.max": "max\n"},
			0,
			"POOL_SIZE=2 needs 106 processes and threads, and the limit of the control group (pids.max) is 90",
		},
		{
			"version 1",
			map[string]string{"proc/self/cgroup": "8:cpu,pids:/a\n4:memory:/b\n", "sys/fs/cgroup/cpu,pids/a/pids.max": "64\n"},
			0,
			"POOL_SIZE=2 needs 106 processes and threads, and the limit of the control group (pids.max) is 64",
		},
		{
			"the host's path in a container",
			map[string]string{"proc/self/cgroup": "4:memory:/docker/1234\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "104857600\n"},
			0,
			"POOL_SIZE=2 needs 210 MB of memory, and the limit of the control group (memory.limit_in_bytes) is 100",
		},
		{
			"memory of a container",
			map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "134217728\n"},
			0,
			"POOL_SIZE=2 needs 210 MB of memory, and the limit of the control group (memory.max) is 128",
		},
		{
			"memory of the machine",
			map[string]string{"proc/meminfo": "MemTotal:         102400 kB\n"},
			0,
			"POOL_SIZE=2 needs 210 MB of memory, and that of the machine is 100",
		},
		{
			"processes of the user",
			map[string]string{"proc/self/limits": "Max processes             80                   127421               processes \n"},
			1000,
			"POOL_SIZE=2 needs 106 processes and threads, and the limit of the user (RLIMIT_NPROC) is 80",
		},
		{"processes of root", map[string]string{"proc/self/limits": "Max processes             80                   127421               processes \n"}, 0, ""},
	} {
		if got := strings.Join(tooSmall(asOnThisMachine(tt.files), tt.user, 2), "; "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
