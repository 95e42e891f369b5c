package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// One write is one trace: request, publish, handling, append, and each read model that shows it. The receiver is a real one, over HTTP.
func TestTrace(t *testing.T) {
	var mu sync.Mutex
	var spans []*otlp.Span
	var resources []string
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		var request coltrace.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(data, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range request.ResourceSpans {
			resources = append(resources, rs.Resource.String())
			for _, s := range rs.ScopeSpans {
				spans = append(spans, s.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer receiver.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	p, _ := startTest(t, controlSettings{})
	r, err := http.NewRequest("POST", p.url()+"/queue/enqueue", strings.NewReader(enqueueBody("traced")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 201 {
		t.Fatal(answer.Status)
	}
	p.call(t, "GET", "/health", "", "")
	find := func() (map[string]*otlp.Span, error) {
		mu.Lock()
		defer mu.Unlock()
		found := map[string]*otlp.Span{}
		for _, s := range spans {
			if fmt.Sprintf("%x", s.TraceId) == "0af7651916cd43dd8448eb211c80319c" {
				found[s.Name] = s
			}
			if strings.Contains(s.Name, "health") {
				return nil, fmt.Errorf("/health is traced")
			}
		}
		for _, name := range append([]string{"POST /queue/enqueue", "publish commands", "handle command", "append"}, applies(p.read.Names())...) {
			if found[name] == nil {
				return nil, fmt.Errorf("no span %q among %d", name, len(found))
			}
		}
		return found, nil
	}
	eventually(t, 10*time.Second, func() error { _, err := find(); return err })
	found, err := find()
	if err != nil {
		t.Fatal(err)
	}
	for child, parent := range map[string]string{
		"publish commands": "POST /queue/enqueue", "handle command": "publish commands", "append": "handle command", "apply builds": "handle command", "apply queue": "handle command",
	} {
		if !bytes.Equal(found[child].ParentSpanId, found[parent].SpanId) {
			t.Errorf("%s is not below %s", child, parent)
		}
		if found[child].EndTimeUnixNano < found[child].StartTimeUnixNano || found[child].StartTimeUnixNano < found[parent].StartTimeUnixNano {
			t.Errorf("%s begins or ends too early", child)
		}
	}
	if got := fmt.Sprintf("%x", found["POST /queue/enqueue"].ParentSpanId); got != "b7ad6b7169203331" {
		t.Errorf("the request's parent is %s", got)
	}
	if !strings.Contains(strings.Join(resources, " "), "refinery") {
		t.Errorf("the resource is %v", resources)
	}
}

func applies(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = "apply " + n
	}
	return out
}

// Without an exporter in the environment there are no traces, and what cannot be is said.
func TestTraceIsOff(t *testing.T) {
	p, _ := startTest(t, controlSettings{})
	if p.tracer != nil {
		t.Error("traces are made for nobody")
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "zipkin")
	_, err := startPlane(context.Background(), controlSettings{HTTPAddr: freeAddr(t), QueueBackend: "file", MaxAttempts: 3, KeepOutcomes: time.Hour}, t.TempDir(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "OTEL_TRACES_EXPORTER") {
		t.Errorf("an exporter that is not known: %v", err)
	}
}
