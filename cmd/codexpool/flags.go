package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"codexpool/codex"
)

const usage = `usage: codexpool [serve|check|config|health|version] [--env-file FILE]... [--json]
       codexpool login [--env-file FILE]... [--device-auth] [-- ARGUMENTS OF CODEX LOGIN]
       codexpool key new NAME

  serve    serve the API (the default)
  check    start one child, call it, ask the provider for its models (free), and print what was found
  config   print every setting with its value, source and meaning (--json: as JSON)
  health   report whether the running daemon is ready
  login    log in to ChatGPT with the CLI's own login, into CODEX_HOME; over SSH, and
           with --device-auth, by a code that is typed into a browser elsewhere
  key new  make a key: print it once, and the block for PROXY_API_KEYS_FILE
  version  print the version, its commit, and those of Go and of the Codex CLI

Settings are environment variables; see codexpool config. An env file is read
before the environment, which wins.
`

// commandLine is what was asked for.
type commandLine struct {
	command  string
	operands []string // of the commands key and login
	envFiles []string
	json     bool
}

// parse reads the command line. It prints what is wrong with it to stderr. Only the
// commands key and login have operands.
func parse(args []string, stderr io.Writer) (line commandLine, err error) {
	flags := flag.NewFlagSet("codexpool", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	flags.Func("env-file", "", func(path string) error {
		line.envFiles = append(line.envFiles, path)
		return nil
	})
	flags.BoolVar(&line.json, "json", false, "")
	device := flags.Bool("device-auth", false, "")
	showVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return line, err
	}
	line.command = "serve"
	if flags.NArg() > 0 { // flags may come before and after it
		line.command = flags.Arg(0)
		if err := flags.Parse(flags.Args()[1:]); err != nil {
			return line, err
		}
	}
	if *showVersion {
		line.command = "version"
	}
	switch line.command {
	case "key", "login":
		if line.operands = flags.Args(); *device {
			line.operands = append([]string{"--device-auth"}, line.operands...)
		}
		return line, nil
	case "serve", "check", "config", "health", "version":
	case "help":
		flags.Usage()
		return line, flag.ErrHelp
	default:
		err = fmt.Errorf("no such command: %s", line.command)
	}
	switch {
	case line.json && line.command != "config":
		err = errors.New("--json is for config")
	case *device:
		err = errors.New("--device-auth is for login")
	}
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument: %s", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: %v\n\n%s", err, usage)
	}
	return line, err
}

// release and commit are set by the linker where there is no checkout, or it is not to be
// asked: in the image and for a release.
var release, commit string

// version is the release, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if release != "" || !ok {
		return cmp.Or(release, "unknown")
	}
	if info.Main.Version == "" || info.Main.Version == "(devel)" {
		return cmp.Or(stamp(info, "vcs.revision"), info.Main.Version)
	}
	return info.Main.Version
}

// stamp is what Go noted of the checkout when it built the program; "" where it could not.
func stamp(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// about says what this program is, for a report of a bug.
func about() string {
	built := commit
	if info, ok := debug.ReadBuildInfo(); ok && built == "" {
		built = stamp(info, "vcs.revision")
		if stamp(info, "vcs.modified") == "true" {
			built += "-dirty"
		}
	}
	return fmt.Sprintf("codexpool %s\ncommit    %s\nGo        %s %s/%s\nCodex CLI %s, which it was tested with\n",
		version(), cmp.Or(built, "unknown"), runtime.Version(), runtime.GOOS, runtime.GOARCH, codex.Pinned)
}
