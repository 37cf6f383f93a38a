package upstream

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"codexpool/codex"
)

// Hooks report what happens between the relay and the provider. Any may be nil;
// none may block, for they run within the request.
//
// ctx has the values of the context that was given to Prepare, so that a tracer
// finds the span of the caller's request there. It may be cancelled already.
type Hooks struct {
	// Request reports one try at the provider: its HTTP status (0 = no answer),
	// whether the connection was used before, and the time until the headers came.
	// A try that was cancelled is not reported.
	Request func(ctx context.Context, status int, reused bool, firstByte time.Duration)

	// Sending reports that a call's request is about to be sent. What it adds to header is
	// sent too, with both tries. The function that it returns is called once, before the
	// caller learns that the answer is over.
	Sending func(ctx context.Context, asked Asked, header http.Header) func(Answered)

	// FirstToken reports the time from a call's request to the first piece of its answer.
	FirstToken func(ctx context.Context, took time.Duration)

	// Retried reports that a second try begins.
	Retried func(ctx context.Context)

	// Sent and Received report the bytes of bodies, to the provider and from it.
	Sent     func(ctx context.Context, bytes int64)
	Received func(ctx context.Context, bytes int64)

	// Limit reports a limit that an answer of the provider contains.
	Limit func(ctx context.Context, limit Limit, value float64)
}

// Asked is what a call asks of the provider.
type Asked struct {
	Base  *url.URL // of the provider; not to be changed
	Model string   // "" where the caller's body leaves it to the provider
	Text  bool     // bare text was asked for, not a message

	// Settings reads the body for those that tune the answer. It may only be called before
	// Hooks.Sending returns.
	Settings func() Settings
}

// Settings are the fields of a request that tune the answer; nil and "" where it has none.
type Settings struct {
	MaxTokens   *int64
	Temperature *float64
	TopP        *float64
	Effort      string // of the reasoning
}

// settings are those in a body; none where one of them is of another type.
func settings(body []byte) Settings {
	var b struct {
		MaxTokens   *int64   `json:"max_output_tokens"`
		Temperature *float64 `json:"temperature"`
		TopP        *float64 `json:"top_p"`
		Reasoning   struct {
			Effort string `json:"effort"`
		} `json:"reasoning"`
	}
	if json.Unmarshal(body, &b) != nil {
		return Settings{}
	}
	return Settings{b.MaxTokens, b.Temperature, b.TopP, b.Reasoning.Effort}
}

// Answered is how a call ended.
type Answered struct {
	Status     int           // of the provider; 0 where it did not answer
	FirstToken time.Duration // from the request to the first piece of the answer; 0 where none came
	ID, Model  string        // of the answer, as its last event says; "" where it does not
	Usage      codex.Usage   // as the provider counted; zero where it did not
	Finish     codex.Finish  // why the model stopped; "" where the answer is not whole
	Failure    *Failure      // why it is not; nil too after a panic of ours
}

// Limit names one of the provider's limits. The list of them is closed.
type Limit struct {
	// limit or remaining (a number of units); for the windows of a ChatGPT login: used (a
	// fraction from 0 to 1), reset (when it ends, in Unix seconds) or window (its length, in
	// seconds).
	Kind string
	Unit string // requests or tokens; primary or secondary for the windows
}

// limitHeaders are the headers in which providers report their limits.
var limitHeaders = map[string]Limit{
	"X-Ratelimit-Limit-Requests":       {"limit", "requests"},
	"X-Ratelimit-Limit-Tokens":         {"limit", "tokens"},
	"X-Ratelimit-Remaining-Requests":   {"remaining", "requests"},
	"X-Ratelimit-Remaining-Tokens":     {"remaining", "tokens"},
	"X-Codex-Primary-Used-Percent":     {"used", "primary"},
	"X-Codex-Secondary-Used-Percent":   {"used", "secondary"},
	"X-Codex-Primary-Reset-At":         {"reset", "primary"},
	"X-Codex-Secondary-Reset-At":       {"reset", "secondary"},
	"X-Codex-Primary-Window-Minutes":   {"window", "primary"},
	"X-Codex-Secondary-Window-Minutes": {"window", "secondary"},
}

// limits reports the limits that an answer's headers contain.
func (h Hooks) limits(ctx context.Context, header http.Header) {
	if h.Limit == nil {
		return
	}
	for name, limit := range limitHeaders {
		value, err := strconv.ParseFloat(header.Get(name), 64)
		if err != nil || !(value >= 0 && value <= math.MaxInt64) { // written so that NaN fails too
			continue // absent, or not a number of anything
		}
		switch limit.Kind {
		case "used":
			value /= 100
		case "window":
			value *= 60
		}
		h.Limit(ctx, limit, value)
	}
}

func (h Hooks) received(ctx context.Context, bytes int) {
	if h.Received != nil {
		h.Received(ctx, int64(bytes))
	}
}
