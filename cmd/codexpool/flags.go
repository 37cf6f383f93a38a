package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"runtime/debug"
)

const usage = `usage: codexpool [serve|check|config|health|version] [--env-file FILE]...
       codexpool key new NAME

  serve    serve the API (the default)
  check    start one child, call it, and print what was found
  config   print every setting with its value, source and meaning
  health   report whether the running daemon is ready
  key new  make a key: print it once, and the block for PROXY_API_KEYS_FILE
  version  print the version

Settings are environment variables; see codexpool config. An env file is read
before the environment, which wins.
`

// parse reads the command line. It prints what is wrong with it to stderr. Only the
// command key has operands.
func parse(args []string, stderr io.Writer) (command string, operands, envFiles []string, err error) {
	flags := flag.NewFlagSet("codexpool", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	flags.Func("env-file", "", func(path string) error {
		envFiles = append(envFiles, path)
		return nil
	})
	showVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return "", nil, nil, err
	}
	command = "serve"
	if flags.NArg() > 0 { // flags may come before and after it
		command = flags.Arg(0)
		if err := flags.Parse(flags.Args()[1:]); err != nil {
			return "", nil, nil, err
		}
	}
	if *showVersion {
		command = "version"
	}
	switch command {
	case "key":
		return command, flags.Args(), envFiles, nil
	case "serve", "check", "config", "health", "version":
	case "help":
		flags.Usage()
		return "", nil, nil, flag.ErrHelp
	default:
		err = fmt.Errorf("no such command: %s", command)
	}
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument: %s", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: %v\n\n%s", err, usage)
	}
	return command, nil, envFiles, err
}

// release is set by the linker where no checkout is: in the image.
var release string

// version is the release, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if release != "" || !ok {
		return cmp.Or(release, "unknown")
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (info.Main.Version == "" || info.Main.Version == "(devel)") {
			return s.Value
		}
	}
	return info.Main.Version
}
