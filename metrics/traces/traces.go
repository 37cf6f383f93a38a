// Package traces tells an OpenTelemetry collector of each request for a completion: its
// time in the queue, its turns, and the provider's requests. The standard OTEL_* variables
// switch it on. Without them there is no [Tracer], and nothing of it runs.
//
// Most spans are made when what they tell of is over, from what api and pool report. Only
// that of the request and that of the provider's request begin before, because others
// refer to them. What spans say is in names.go.
package traces

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"codexpool/api"
	"codexpool/pool"
	"codexpool/upstream"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Tracer makes spans. A nil one makes none: its methods return what they are given.
type Tracer struct {
	tracer   trace.Tracer
	provider *sdk.TracerProvider
}

// wanted reports whether the environment names a collector, and is an error where it
// wants what we have not.
func wanted() (bool, error) {
	exporter := os.Getenv("OTEL_TRACES_EXPORTER")
	endpoint := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
	protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"))
	switch {
	case strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || exporter == "none" || exporter == "" && endpoint == "":
		return false, nil
	case exporter != "" && exporter != "otlp":
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER: it must be otlp or none, not %q", exporter)
	case protocol != "" && protocol != "http/protobuf":
		return false, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: it must be http/protobuf, not %q", protocol)
	}
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"} {
		if !isEndpoint(os.Getenv(prefix + "ENDPOINT")) {
			return false, fmt.Errorf("%sENDPOINT: it is not an http(s) URL, or has a password, which belongs in %sHEADERS", prefix, prefix)
		}
		if !areHeaders(os.Getenv(prefix + "HEADERS")) {
			return false, fmt.Errorf("%sHEADERS: it must be name=value,name=value with percent-encoded values", prefix)
		}
	}
	return true, nil
}

// isEndpoint reports whether s is a URL that the library may quote in an error.
func isEndpoint(s string) bool {
	u, err := url.Parse(s)
	return s == "" || err == nil && u.Host != "" && u.User == nil && (u.Scheme == "http" || u.Scheme == "https")
}

var headers = regexp.MustCompile(`^( *[\w-]+ *=[^,%]*(%[0-9A-Fa-f]{2}[^,%]*)*(,|$))*$`)

// areHeaders reports whether the library can read all headers in s: those that it cannot
// read it prints, and they are secret.
func areHeaders(s string) bool { return headers.MatchString(s) && !strings.HasSuffix(s, ",") }

// Open returns a Tracer where the process's environment asks for one, and nil otherwise.
// version is the daemon's. What the collector does not take is logged, and stops nothing.
// Close the Tracer after use.
func Open(ctx context.Context, version string, log *slog.Logger) (*Tracer, error) {
	on, err := wanted()
	if !on {
		return nil, err
	}
	// The library reports errors to a handler of the whole process alone.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces", "err", err) }))
	// It reads its own variables, as sampler, limits and batches do.
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, err
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(service(version)...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	p := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	return &Tracer{tracer: p.Tracer("codexpool", trace.WithInstrumentationVersion(version), trace.WithSchemaURL(schema)), provider: p}, nil
}

// Close sends what was not sent yet, for two seconds at most.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// parent is the header of W3C Trace Context that is read and written. The other one,
// tracestate, has text of the client's.
const parent = "traceparent"

// Handler begins a span of each POST. It goes on with the client's trace. A span that
// Observe does not end is not sent.
func (t *Tracer) Handler(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.MapCarrier{parent: r.Header.Get(parent)})
		ctx, _ = t.tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(received()...))
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Observe ends the span of a request, beside what observe does, unless the request was
// turned away before its key admitted it: whoever has no key can make no span, however the
// client's trace is sampled.
func (t *Tracer) Observe(observe func(context.Context, api.Result)) func(context.Context, api.Result) {
	if t == nil {
		return observe
	}
	return func(ctx context.Context, r api.Result) {
		observe(ctx, r)
		if !r.Admitted {
			return
		}
		span := trace.SpanFromContext(ctx)
		span.SetName(strings.TrimSpace(http.MethodPost + " " + paths[r.Route]))
		span.SetAttributes(ended(r)...)
		if r.FirstToken > 0 {
			span.AddEvent(firstToken, trace.WithTimestamp(time.Now().Add(r.FirstToken-r.Took)))
		}
		if r.Fault != "" && r.Fault != api.FaultClient && r.Fault != api.FaultLimit {
			span.SetStatus(codes.Error, r.Code)
		}
		span.End()
	}
}

// PoolHooks makes a span of each time in the queue, beside what hooks do.
func (t *Tracer) PoolHooks(hooks pool.Hooks) pool.Hooks {
	if t == nil {
		return hooks
	}
	next := hooks.Acquired
	hooks.Acquired = func(ctx context.Context, waited time.Duration, ahead int, err error) {
		next(ctx, waited, ahead, err)
		t.past(ctx, "pool.acquire", time.Now().Add(-waited), err != nil, acquired(ahead, err))
	}
	return hooks
}

// Turned makes spans of turns, for [api.Config].
func (t *Tracer) Turned() func(context.Context, api.Turn) {
	if t == nil {
		return nil
	}
	return func(ctx context.Context, turn api.Turn) {
		t.past(ctx, "codex.turn", turn.Began, turn.Failed, ran(turn))
	}
}

// past makes a span of what ends now, within the request of ctx.
func (t *Tracer) past(ctx context.Context, name string, began time.Time, failed bool, a []attribute.KeyValue) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return // no request's
	}
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(began), trace.WithAttributes(a...))
	if failed {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// RelayHooks makes a span of each request to the provider, beside what hooks do, and has
// a provider that is not public go on with the trace.
func (t *Tracer) RelayHooks(hooks upstream.Hooks) upstream.Hooks {
	if t == nil {
		return hooks
	}
	hooks.Sending = func(ctx context.Context, q upstream.Asked, header http.Header) func(upstream.Answered) {
		ctx, span := t.tracer.Start(ctx, call(q), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(asked(q)...))
		if span.IsRecording() {
			span.SetAttributes(tuned(q.Settings())...)
		}
		if !public(q.Base.Hostname()) {
			carrier := propagation.MapCarrier{}
			propagation.TraceContext{}.Inject(ctx, carrier)
			header.Set(parent, carrier[parent])
		}
		return func(r upstream.Answered) {
			span.SetAttributes(answered(r)...)
			if r.Failure != nil {
				span.SetStatus(codes.Error, "")
			}
			span.End()
		}
	}
	return hooks
}

// public reports whether a host is OpenAI's: it learns nothing of who asks, whichever way
// it was configured.
func public(host string) bool {
	return slices.ContainsFunc([]string{"openai.com", "chatgpt.com"}, func(domain string) bool {
		return strings.EqualFold(host, domain) || strings.HasSuffix(strings.ToLower(host), "."+domain)
	})
}
