package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"codexpool/codex"
)

const usage = `usage: codexpool [COMMAND] [--env-file FILE]...

  serve              serve the API (the default)
  check              start one child, call it, ask the provider for its models (free), and print what was found
  config             print every setting with its value, source and meaning (--json: as JSON)
  health             report whether the running daemon is ready
  pool               show the running daemon's children, why they die and why none starts
                     (--json: all of it; --watch: every second)
  metrics [REGEX]    print the running daemon's metrics, those lines that match
  runbook [NAME]     print a page for whoever is on call: of a page, an alert or an error code; else where to begin
  capacity           print settings for a load (--rps 4 --hold 8: completions a second, seconds that each holds a child;
                     --wait 1: seconds that one in twenty may wait; --from URL: measure a running daemon for a minute)
  login              log in to ChatGPT with the CLI's own login, into CODEX_HOME; over SSH, and with --device-auth,
                     by a code that is typed into a browser elsewhere (-- ARGUMENTS OF CODEX LOGIN)
  key new NAME       make a key: print it once, and the block for PROXY_API_KEYS_FILE
  version            print the version, its commit, and those of Go and of the Codex CLI

Settings are environment variables; see codexpool config. An env file is read
before the environment, which wins. health, pool and metrics need the daemon's own.
`

// commandLine is what was asked for.
type commandLine struct {
	command  string
	operands []string
	envFiles []string
	json     bool
	watch    bool
	demand   demand
	from     string // the address of a daemon
}

// commands are all of them, with the flags that each has beside --env-file, and with how
// many operands it may have. The commands key and login look at
// theirs themselves.
var commands = map[string]struct {
	flags    []string
	operands int
}{
	"serve": {}, "check": {}, "health": {}, "version": {},
	"config":   {[]string{"json"}, 0},
	"pool":     {[]string{"json", "watch"}, 0},
	"metrics":  {nil, 1},
	"runbook":  {nil, 1},
	"capacity": {[]string{"rps", "hold", "wait", "from"}, 0},
	"login":    {[]string{"device-auth"}, math.MaxInt},
	"key":      {nil, math.MaxInt},
}

// parse reads the command line. It prints what is wrong with it to stderr.
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
	flags.BoolVar(&line.watch, "watch", false, "")
	flags.Float64Var(&line.demand.rate, "rps", 0, "")
	flags.Float64Var(&line.demand.hold, "hold", 0, "")
	flags.Float64Var(&line.demand.wait, "wait", 1, "")
	flags.StringVar(&line.from, "from", "", "")
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
	if line.command == "help" {
		flags.Usage()
		return line, flag.ErrHelp
	}
	line.operands = flags.Args()
	if *device {
		line.operands = append([]string{"--device-auth"}, line.operands...)
	}
	if err := line.check(flags); err != nil {
		fmt.Fprintf(stderr, "codexpool: %v\n\n%s", err, usage)
		return line, err
	}
	return line, nil
}

// check finds flags and operands that the command does not have.
func (line commandLine) check(given *flag.FlagSet) (err error) {
	command, ok := commands[line.command]
	if !ok {
		return fmt.Errorf("no such command: %s", line.command)
	}
	given.Visit(func(f *flag.Flag) {
		if f.Name != "env-file" && f.Name != "version" && !slices.Contains(command.flags, f.Name) {
			err = fmt.Errorf("--%s is for %s", f.Name, strings.Join(commandsWith(f.Name), " and "))
		}
	})
	if err == nil && len(line.operands) > command.operands {
		err = fmt.Errorf("unexpected argument: %s", line.operands[command.operands])
	}
	return err
}

// commandsWith lists the commands that have a flag.
func commandsWith(flag string) (names []string) {
	for name, command := range commands {
		if slices.Contains(command.flags, flag) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// operand is the only one, "" where it was left out.
func (line commandLine) operand() string { return strings.Join(line.operands, " ") }

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
