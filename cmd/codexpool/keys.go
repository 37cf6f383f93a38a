package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"codexpool/api"
	"codexpool/configs"
	"codexpool/metrics"
)

// newKey prints a key of this name, once. What is for the keys file goes to stdout, so
// that it can be appended there without the key itself.
func newKey(args []string, stdout, stderr io.Writer) int {
	if len(args) != 2 || args[0] != "new" {
		fmt.Fprint(stderr, "usage: codexpool key new NAME\n")
		return exitBadUsage
	}
	secret, block, err := configs.NewKey(args[1])
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: key new: %v\n", err)
		return exitBadUsage
	}
	fmt.Fprintf(stderr, "The key of %s, which is shown only now:\n\n    %s\n\nThis block is for the file that PROXY_API_KEYS_FILE names:\n\n", args[1], secret)
	fmt.Fprint(stdout, block)
	return exitOK
}

// watchKeys has the server and the metrics follow the keys file until ctx ends. The
// channel is closed when it is no longer followed.
func watchKeys(ctx context.Context, asked <-chan struct{}, cfg configs.Config, server *api.Server, m *metrics.Metrics, log *slog.Logger) <-chan struct{} {
	file := &keysFile{path: cfg.APIKeysFile, log: log, ok: true, at: time.Now()}
	file.apply = func(keys []configs.Key) {
		server.SetKeys(apiKeys(cfg.KeysWith(keys)))
		m.SetKeys(server.Keys())
	}
	m.WatchKeys(file.stat)
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		file.watch(ctx, asked)
	}()
	return ended
}

const (
	keysEvery   = time.Second            // how often the keys file is looked at
	keysSettled = 100 * time.Millisecond // how long it must not change before it is read: somebody may be writing it
)

// keysFile is a file of keys that is read again whenever it has changed. It is compared
// by what is in it: so it does not matter whether it is written, replaced, or a link that
// is changed, and two changes within one tick of the file system's clock are two.
type keysFile struct {
	path  string
	apply func([]configs.Key)
	log   *slog.Logger

	known  bool   // last and failed are what was last seen
	last   []byte // what was read, or
	failed string // why nothing could be

	mu sync.Mutex
	ok bool      // the file as it is now is in force; guarded by mu
	at time.Time // when a file came into force; guarded by mu
}

// watch looks at the file until ctx ends. asked has it looked at at once.
func (f *keysFile) watch(ctx context.Context, asked <-chan struct{}) {
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			f.known = false // it is read, and reported on, though it has not changed
		case <-tick.C:
		}
		f.look(ctx)
	}
}

// look puts the keys of a file that has changed into force. A file with a mistake leaves
// the keys as they are.
func (f *keysFile) look(ctx context.Context) {
	text, failed := f.read()
	if f.known && bytes.Equal(text, f.last) && failed == f.failed {
		return
	}
	select {
	case <-time.After(keysSettled):
	case <-ctx.Done():
	}
	if again, failedAgain := f.read(); !bytes.Equal(again, text) || failedAgain != failed {
		return // it is being written; the next look finds it
	}
	f.known, f.last, f.failed = true, text, failed
	if failed != "" {
		f.reject(failed)
		return
	}
	keys, err := configs.ParseKeys(text)
	if err != nil {
		f.reject(err.Error())
		return
	}
	f.apply(keys)
	f.note(true)
	f.log.Info("keys file read", "keys", len(keys))
}

func (f *keysFile) read() (text []byte, failed string) {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err.Error()
	}
	return text, ""
}

func (f *keysFile) reject(why string) {
	f.note(false)
	f.log.Error("PROXY_API_KEYS_FILE: the keys stay as they are", "err", why)
}

func (f *keysFile) note(ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ok = ok
	if ok {
		f.at = time.Now()
	}
}

// stat reports whether the file as it is now is in force, and since when a file is.
func (f *keysFile) stat() (ok bool, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ok, f.at
}
