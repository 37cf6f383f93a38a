package main

import (
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/lmittmann/tint"
)

// logger logs to stderr, from this level on (LOG_LEVEL). format is LOG_FORMAT: tint,
// which is for people, or json; "" is tint on a terminal, else json. color allows tint
// to use color on a terminal. The caller closes the backlog.
func logger(minimum, format string, color bool, stderr io.Writer) (*slog.Logger, *backlog) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(minimum)); err != nil {
		panic("BUG: a log level that was not checked: " + minimum)
	}
	if format == "" && terminal(stderr) {
		format = "tint"
	}
	to := func(w io.Writer) *slog.Logger {
		if format == "tint" {
			return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !color || !terminal(stderr)}))
		}
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: seconds}))
	}
	direct := to(stderr)
	waiting := newBacklog(stderr, func(lost int64) {
		direct.Warn("lines of the log were dropped here: nobody read them", "lines", lost)
	})
	return to(waiting), waiting
}

// seconds writes durations as Prometheus does, not as nanoseconds.
func seconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}

// plain reports whether the environment asks for no color.
func plain(environ []string) bool {
	return slices.ContainsFunc(only(environ, "NO_COLOR", "TERM"), func(entry string) bool {
		return entry == "TERM=dumb" || (variable(entry) == "NO_COLOR" && entry != "NO_COLOR=")
	})
}

func terminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
