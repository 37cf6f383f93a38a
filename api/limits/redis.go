package limits

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	deadline  = 50 * time.Millisecond // of one call
	maxMisses = 3                     // calls that fail in a row, after which no request calls
	probeWait = time.Second           // until it is tried again
)

// Redis has the buckets of several daemons. While it cannot be used, each goes on with its
// own: a call has a deadline, and after some that failed no request calls until a probe in
// the background has succeeded. A nil Redis has none.
type Redis struct {
	client *redis.Client
	log    *slog.Logger
	misses atomic.Int32 // in a row
	away   atomic.Bool
	errors atomic.Int64

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	probing sync.WaitGroup
}

// OpenRedis connects to the server of a URL such as rediss://user:password@host:6379/0.
// The error does not quote it. A server that cannot be reached is no error. The caller
// closes the Redis.
func OpenRedis(url string, log *slog.Logger) (*Redis, error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("it is not the URL of a Redis server, such as rediss://user:password@host:6379/0")
	}
	return openRedis(options, log), nil
}

func openRedis(options *redis.Options, log *slog.Logger) *Redis {
	redis.SetLogger(quiet{})
	options.ContextTimeoutEnabled = true
	options.MaxRetries, options.DialerRetries = -1, 1
	options.DisableIdentity = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	r := &Redis{client: redis.NewClient(options), log: log}
	r.ctx, r.stop = context.WithCancel(context.Background())
	if err := r.probe(); err != nil { // so that a wrong URL is reported at the start
		r.lose(err)
	}
	return r
}

// quiet drops what go-redis would write to stderr: its errors are enough.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// Close ends the connections.
func (r *Redis) Close() {
	r.stop()
	r.probing.Wait()
	r.client.Close()
}

// Stat reports whether limits are shared now, and how many calls have failed.
func (r *Redis) Stat() (up bool, errors int64) { return !r.away.Load(), r.errors.Load() }

//go:embed bucket.lua
var bucketScript string

// script is one atomic step on buckets. GCRA keeps one number for each: when it will be
// full.
var script = redis.NewScript(bucketScript)

// ask is what a call wants of one bucket.
type ask struct {
	key  string
	rate Rate
	cost int
}

// take takes what is asked for of all buckets, or of none and returns for how long. With
// force it takes it in any case. has is what each bucket has then.
func (r *Redis) take(ctx context.Context, force bool, asks ...ask) (wait time.Duration, has []float64, ok bool) {
	if r == nil || r.away.Load() {
		return 0, nil, false
	}
	wait, has, err := r.call(ctx, force, asks)
	switch {
	case err == nil:
		r.misses.Store(0)
		return wait, has, true
	case ctx.Err() == nil: // else the client has left
		r.errors.Add(1)
		if r.misses.Add(1) >= maxMisses {
			r.lose(err)
		}
	}
	return 0, nil, false
}

func (r *Redis) call(ctx context.Context, force bool, asks []ask) (wait time.Duration, has []float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	keys, args := make([]string, len(asks)), []any{force}
	for i, a := range asks {
		keys[i] = a.key
		args = append(args, float64(a.rate.Per.Nanoseconds())/1000/float64(a.rate.Most), a.rate.Most, a.cost)
	}
	told, err := script.Run(ctx, r.client, keys, args...).StringSlice()
	if err != nil {
		return 0, nil, err
	}
	figures := make([]float64, len(told))
	for i, s := range told {
		if figures[i], err = strconv.ParseFloat(s, 64); err != nil {
			return 0, nil, err
		}
	}
	if len(figures) != 1+len(asks) {
		return 0, nil, fmt.Errorf("%d figures for %d buckets", len(figures), len(asks))
	}
	return time.Duration(figures[0]) * time.Microsecond, figures[1:], nil
}

// lose has the limits no longer shared until a probe succeeds. It is logged once.
func (r *Redis) lose(err error) {
	if r.away.Swap(true) || r.ctx.Err() != nil {
		return
	}
	r.log.Warn("Redis cannot be used: this daemon limits keys by itself", "err", err)
	r.probing.Go(r.recover) // ends with ctx
}

func (r *Redis) recover() {
	tick := time.NewTicker(probeWait)
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		if r.probe() == nil {
			r.misses.Store(0)
			r.away.Store(false)
			r.log.Info("Redis can be used again: limits are shared")
			return
		}
	}
}

// probe takes from a bucket of its own: a server that only answers may be read-only, or
// full.
func (r *Redis) probe() error {
	_, _, err := r.call(r.ctx, true, []ask{{key: "codexpool:probe", rate: Rate{Most: 1, Per: time.Second}, cost: 1}})
	return err
}
