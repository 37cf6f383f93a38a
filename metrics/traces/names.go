package traces

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"codexpool/api"
	"codexpool/pool"
	"codexpool/upstream"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
)

// All that spans say is in this file. The names are ours, which begin with codexpool, and
// those of OpenTelemetry's semantic conventions 1.41.0, the last with generative AI among
// them: that part still changes, elsewhere. Every value is a number, a word of a closed
// list, or a name: of a key, a model, an answer or the provider's host. The path of a request
// (url.path), which the conventions want too, is the client's text.

const schema = semconv.SchemaURL

// reasoningLevel is from the conventions for generative AI of their own, 0.1.0: 1.41.0 has no
// name for it.
const reasoningLevel attribute.Key = "gen_ai.request.reasoning.level"

const firstToken = "first_token" // the event

// paths are those of the routes whose requests are traced to their end.
var paths = map[string]string{"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}

// service is who sends the spans, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says
// otherwise.
func service(version string) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.ServiceName("codexpool"), semconv.ServiceVersion(version)}
}

// received is what is known of a request at its start, for samplers.
func received() []attribute.KeyValue {
	return []attribute.KeyValue{semconv.HTTPRequestMethodPost, semconv.URLScheme("http")}
}

// attributes are those of a span. What is not known is left out.
type attributes []attribute.KeyValue

func (a *attributes) text(key attribute.Key, value string) {
	if value != "" {
		*a = append(*a, key.String(value))
	}
}

func (a *attributes) number(key attribute.Key, value int64) {
	if value != 0 {
		*a = append(*a, key.Int64(value))
	}
}

// ended is how a request ended.
func ended(r api.Result) (a attributes) {
	a.text(semconv.HTTPRouteKey, paths[r.Route])
	a.number(semconv.HTTPResponseStatusCodeKey, int64(r.Status))
	a.text(semconv.ErrorTypeKey, r.Code)
	a.text("codexpool.fault", string(r.Fault))
	a.text("codexpool.key", r.Key)
	a.text("codexpool.model", r.Model)
	return a
}

// acquired is how the waiting for a child ended, before which others were waiting.
func acquired(ahead int, err error) attributes {
	outcome := "left"
	for _, o := range []struct {
		err  error
		name string
	}{
		{nil, "leased"},
		{pool.ErrFull, "full"},
		{pool.ErrTimeout, "timeout"},
		{pool.ErrUnavailable, "unavailable"},
		{pool.ErrDraining, "draining"},
		{pool.ErrClosed, "closed"},
	} {
		if errors.Is(err, o.err) {
			outcome = o.name
			break
		}
	}
	return attributes{attribute.String("codexpool.pool.outcome", outcome), attribute.Int("codexpool.pool.waiting", ahead)}
}

// ran is what is known of a turn.
func ran(t api.Turn) attributes {
	return attributes{attribute.Int("codexpool.child.pid", t.Child), attribute.Int("codexpool.child.turns", t.Turns)}
}

// operation is what the provider is asked to do.
func operation(q upstream.Asked) attribute.KeyValue {
	if q.Text {
		return semconv.GenAIOperationNameTextCompletion
	}
	return semconv.GenAIOperationNameChat
}

// call is the name of the span of the provider's request.
func call(q upstream.Asked) string {
	return strings.TrimSpace(operation(q).Value.AsString() + " " + q.Model)
}

// asked is what the provider is asked for, for samplers.
func asked(q upstream.Asked) attributes {
	a := attributes{operation(q), semconv.GenAIProviderNameOpenAI, semconv.GenAIRequestStream(true), semconv.ServerAddress(q.Base.Hostname())}
	a.text(semconv.GenAIRequestModelKey, q.Model)
	a.number(semconv.ServerPortKey, port(q.Base))
	return a
}

// tuned is how the answer is to be.
func tuned(s upstream.Settings) (a attributes) {
	if s.MaxTokens != nil {
		a = append(a, semconv.GenAIRequestMaxTokensKey.Int64(*s.MaxTokens))
	}
	if s.Temperature != nil {
		a = append(a, semconv.GenAIRequestTemperature(*s.Temperature))
	}
	if s.TopP != nil {
		a = append(a, semconv.GenAIRequestTopP(*s.TopP))
	}
	a.text(reasoningLevel, s.Effort)
	return a
}

func port(u *url.URL) int64 {
	if n, err := strconv.ParseInt(u.Port(), 10, 64); err == nil {
		return n
	}
	return map[string]int64{"http": 80, "https": 443}[u.Scheme]
}

// answered is what the provider answered.
func answered(r upstream.Answered) (a attributes) {
	a.number(semconv.HTTPResponseStatusCodeKey, int64(r.Status))
	a.text(semconv.GenAIResponseIDKey, r.ID)
	a.text(semconv.GenAIResponseModelKey, r.Model)
	if r.Finish != "" {
		a = append(a, semconv.GenAIResponseFinishReasons(string(r.Finish)))
	}
	if r.FirstToken > 0 {
		a = append(a, semconv.GenAIResponseTimeToFirstChunk(r.FirstToken.Seconds()))
	}
	a.number(semconv.GenAIUsageInputTokensKey, r.Usage.Input)
	a.number(semconv.GenAIUsageCacheReadInputTokensKey, r.Usage.Cached)
	a.number(semconv.GenAIUsageOutputTokensKey, r.Usage.Output)
	a.number(semconv.GenAIUsageReasoningOutputTokensKey, r.Usage.Reasoning)
	a.text(semconv.ErrorTypeKey, failed(r.Failure))
	return a
}

// failed is the kind of a provider's failure. Its own words may quote the prompt.
func failed(f *upstream.Failure) string {
	switch {
	case f == nil:
		return ""
	case errors.Is(f.Cause, context.Canceled):
		return "cancelled"
	case f.Status == 0:
		return "no_answer"
	case f.Status == http.StatusOK:
		return "broken_answer"
	}
	return strconv.Itoa(f.Status)
}
