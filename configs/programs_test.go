package configs_test

import (
	"fmt"
	"testing"

	"codexpool/configs"
)

func TestProgramsFindsTheKeysThatRunPrograms(t *testing.T) {
	for config, want := range map[string]string{
		"": "[]",
		"model = \"m\"\n[features]\nhooks = true": "[]",
		"#notify = [\"x\"]\nnotifying = 1":        "[]",
		"notify = [\"x\"]":                        "[notify]",
		"notify = []":                             "[notify]",
		"\ufeffnotify = [\"x\"]":                  "[notify]",
		"a = 1\rnotify = 2":                       "line 1 is not valid TOML",
		"a = 1\r\nnotify = [\"x\"]\r\n":           "[notify]",
		"\t\"notify\"=[\"x\"]":                    "[notify]",
		"'notify' = [\"x\"]":                      "[notify]",
		"a = 1\n[mcp_servers.x]\n[mcp_servers.y]": "[mcp_servers]",
		"[mcp_servers]":                           "[mcp_servers]",
		"[[mcp_servers]]":                         "[mcp_servers]",
		"[ 'mcp_servers' . x ]":                   "[mcp_servers]",
		"mcp_servers.x.command = \"c\"":           "[mcp_servers]",
		"mcp_servers . x . command = \"c\"":       "[mcp_servers]",
		"mcp_servers = { x = {} }\nnotify=[]":     "[notify mcp_servers]",
		"text = \"\"\"\n[a]\n\"\"\"\nnotify = []": "[notify]",

		// An escape in a key means the same key.
		`"mcp\u005fservers" = { x = { command = "c" } }`:       "[mcp_servers]",
		`"mcp\x5fservers" = 1`:                                 "[mcp_servers]", // since TOML 1.1
		"[\"\\u006dcp_servers\".x]\ncommand = \"c\"":           "[mcp_servers]",
		`"\U0000006eotify" = ["x"]`:                            "[notify]",
		`'mcp\u005fservers' = 1`:                               "[]", // a literal key has no escapes
		"\"mcp\\u005fservers\".x.command = \"c\"\nnotify = []": "[notify mcp_servers]",

		// Text that only looks like a key.
		"text = \"\"\"\nnotify = 1\n[mcp_servers.x]\n\"\"\"": "[]",
		"text = '''\nmcp_servers.x.command = 1\n'''":         "[]",
		"text = [\n\"notify\",\n\"mcp_servers\",\n]":         "[]",
		"text = \"a\\\"\"\nnotify = [\"x\"]":                 "[notify]",

		// Codex ignores the keys everywhere but at the top level.
		"[profiles.p]\nmcp_servers = { x = { command = \"c\" } }": "[]",
		"[profiles.p]\nnotify = [\"x\"]":                          "[]",
		"profiles.p.mcp_servers.x.command = \"c\"":                "[]",
		"[tui]\nnotify = true":                                    "[]",

		"a = 1\nmcp_servers =":       "line 2 is not valid TOML",
		"a = \"\"\"\nnotify = []":    "line 2 is not valid TOML",
		"notify = [1]\nnotify = [2]": "line 2 is not valid TOML",
		"key = sk-secret":            "line 1 is not valid TOML",
		"a = \"\xff\"":               "line 1 is not valid TOML",
		"\x00":                       "line 1 is not valid TOML",
		"{\"notify\": []}":           "line 1 is not valid TOML",
	} {
		found, err := configs.Programs([]byte(config))
		got := fmt.Sprint(found)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", config, got, want)
		}
	}
}
