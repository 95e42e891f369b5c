// Package tracing follows a write from its request over the bus, the decision and the log to the read models that show it, as
// OpenTelemetry traces. A nil Tracer, which is what there is unless the environment names an exporter, does nothing.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// mostCommands is how many commands are remembered, so that what reads their events finds their traces.
const mostCommands = 4096

// Tracer makes spans.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer

	mu    sync.Mutex
	spans map[uuid.UUID]trace.SpanContext // of the handling of a command
	order []uuid.UUID                     // a ring
	next  int
}

// carrier is how a trace's context travels (W3C Trace Context).
var carrier = propagation.TraceContext{}

// wanted reads the standard variables.
func wanted(env func(string) string) (bool, error) {
	if strings.EqualFold(env("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	switch exporter := env("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return false, nil
	case "":
		if env("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return false, nil
		}
	case "otlp":
	default:
		return false, fault.New(fault.Invalid, "OTEL_TRACES_EXPORTER is otlp or none here")
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		if p := env(name); p != "" && p != "http/protobuf" {
			return false, fault.New(fault.Invalid, "%s is http/protobuf here", name)
		}
	}
	return true, nil
}

// New makes a Tracer that exports by OTLP over HTTP as the standard variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and
// so on), or nil where they name no exporter.
func New(ctx context.Context, version string, logger *slog.Logger) (*Tracer, error) {
	on, err := wanted(os.Getenv)
	if !on {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the exporter of traces: %w", err)
	}
	r, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "refinery"), attribute.String("service.version", version)),
		resource.WithFromEnv()) // the later one wins
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("traces are not exported", "error", err) }))
	return newTracer(sdk.WithBatcher(exporter), sdk.WithResource(r)), nil
}

func newTracer(o ...sdk.TracerProviderOption) *Tracer {
	p := sdk.NewTracerProvider(o...)
	return &Tracer{
		provider: p, tracer: p.Tracer("github.com/wheelrefinery/refinery"),
		spans: map[uuid.UUID]trace.SpanContext{}, order: make([]uuid.UUID, mostCommands),
	}
}

// Close exports what is left.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// HTTP traces the requests that next answers, but for those that only look how the program does.
func (t *Tracer) HTTP(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health", "/ready", "/metrics":
			next.ServeHTTP(w, r)
			return
		}
		ctx := carrier.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := t.tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Answered tells the span of a request what became of it.
func (t *Tracer) Answered(ctx context.Context, r *api.Request, status int) {
	if t == nil {
		return
	}
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	if r.Route != "" {
		span.SetName(r.Method + " " + r.Route)
	}
	span.SetAttributes(attribute.String("http.request.method", r.Method), attribute.String("http.route", r.Route),
		attribute.Int("http.response.status_code", status), attribute.String("refinery.request", r.ID), attribute.String("refinery.actor", r.Actor))
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(status))
	}
}

func end(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.RecordError(err)
	}
	span.End()
}

// Publish gives messages the trace of ctx, if it has one. The caller calls the result when they are on the bus.
func (t *Tracer) Publish(ctx context.Context, topic string, messages []*message.Message) func(error) {
	if t == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, "publish "+topic, trace.WithSpanKind(trace.SpanKindProducer),
		trace.WithAttributes(attribute.Int("messaging.batch.message_count", len(messages))))
	for _, m := range messages {
		carrier.Inject(ctx, propagation.MapCarrier(m.Metadata))
	}
	return func(err error) { end(span, err) }
}

// Handle begins the span of a command's delivery. The caller calls the result at its end.
func (t *Tracer) Handle(m *message.Message) (context.Context, func(error)) {
	if t == nil {
		return m.Context(), func(error) {}
	}
	ctx := carrier.Extract(m.Context(), propagation.MapCarrier(m.Metadata))
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return m.Context(), func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, "handle command", trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attribute.String("refinery.command.id", m.UUID)))
	if id, err := uuid.Parse(m.UUID); err == nil && span.IsRecording() {
		t.remember(id, span.SpanContext())
	}
	return ctx, func(err error) { end(span, err) }
}

func (t *Tracer) remember(id uuid.UUID, s trace.SpanContext) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.spans, t.order[t.next])
	t.order[t.next] = id
	t.next = (t.next + 1) % mostCommands
	t.spans[id] = s
}

func (t *Tracer) of(id uuid.UUID) (trace.SpanContext, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.spans[id]
	return s, ok
}

// Appended is for eventlog.Options: it makes a span of the transaction in the trace of each command.
func (t *Tracer) Appended(outcomes []eventlog.Outcome, _ int, begin time.Time) {
	if t == nil {
		return
	}
	now := time.Now()
	for _, o := range outcomes {
		parent, ok := t.of(o.Command)
		if !ok {
			continue
		}
		_, span := t.tracer.Start(trace.ContextWithSpanContext(context.Background(), parent), "append", trace.WithTimestamp(begin), trace.WithAttributes(
			attribute.String("refinery.command.name", o.Name), attribute.String("refinery.command.id", o.Command.String()),
			attribute.String("refinery.command.status", string(o.Status)), attribute.String("refinery.stream", o.Stream),
			attribute.Int64("refinery.position.first", o.First), attribute.Int64("refinery.position.last", o.Last),
			attribute.Int("refinery.append.commands", len(outcomes))))
		span.End(trace.WithTimestamp(now))
	}
}

// Applied is for eventlog.Options: it makes a span of the batch in the trace of each command whose events are in it, where the command
// was handled by this process, not long ago.
func (t *Tracer) Applied(follower string, batch []events.Recorded, begin time.Time) {
	if t == nil {
		return
	}
	now := time.Now()
	var last uuid.UUID
	for _, e := range batch {
		if e.Command == last { // the events of a command follow each other
			continue
		}
		last = e.Command
		parent, ok := t.of(e.Command)
		if !ok {
			continue
		}
		_, span := t.tracer.Start(trace.ContextWithSpanContext(context.Background(), parent), "apply "+follower, trace.WithTimestamp(begin), trace.WithAttributes(
			attribute.Int64("refinery.position", e.Position), attribute.String("refinery.stream", e.Stream), attribute.Int("refinery.batch.events", len(batch))))
		span.End(trace.WithTimestamp(now))
	}
}
