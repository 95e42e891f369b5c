package writeapi_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/writeapi"
)

// outcomes answers every wait the same way.
func outcomes(o eventlog.Outcome, err error) func(uuid.UUID) (func(context.Context) (eventlog.Outcome, error), func()) {
	return func(id uuid.UUID) (func(context.Context) (eventlog.Outcome, error), func()) {
		o.Command = id
		return func(context.Context) (eventlog.Outcome, error) { return o, err }, func() {}
	}
}

func TestBusDown(t *testing.T) {
	for _, err := range []error{errDown, errors.New("write /var/lib/secret: no space left")} {
		p := start(t, gate{send: func(commands.Meta, commands.Command) error { return err }})
		a := p.send(503, "POST", "/queue/pause", nil)
		if a.Header().Get("Retry-After") == "" || strings.Contains(a.Body.String(), "secret") {
			t.Errorf("%v %s", a.Header(), a.Body)
		}
		p.send(503, "POST", "/queue/pause", nil, "Prefer", "respond-async")
		p.send(503, "POST", "/worker/lease", leaseAsk)
	}
}

func TestNoOutcomeYet(t *testing.T) {
	for _, err := range []error{context.DeadlineExceeded, errors.New("the database is down")} {
		p := start(t, gate{await: outcomes(eventlog.Outcome{}, err)})
		a := p.send(202, "POST", "/queue/pause", nil)
		if a.Header().Get("Preference-Applied") != "" || !strings.HasPrefix(a.Header().Get("Location"), "/commands/") {
			t.Errorf("%v", a.Header())
		}
		p.send(202, "POST", "/queue/clear", nil)
		build := markup
		p.jobs.put(&writeapi.Candidate{Build: &build})
		p.send(503, "POST", "/worker/lease", leaseAsk)
		if p.jobs.done != 1 {
			t.Error("the candidate is held back for ever")
		}
	}
}

func TestFailedCommand(t *testing.T) {
	for code, status := range map[fault.Code]int{fault.Internal: 500, fault.Invalid: 500, fault.Unavailable: 503} {
		o := eventlog.Outcome{Status: eventlog.Failed, Problem: fault.New(code, "it kept failing")}
		p := start(t, gate{
			send: func(m commands.Meta, _ commands.Command) error {
				o.Command, o.Digest = m.ID, m.Digest
				return nil
			},
			await: func(uuid.UUID) (func(context.Context) (eventlog.Outcome, error), func()) {
				return func(context.Context) (eventlog.Outcome, error) { return o, nil }, func() {}
			},
		})
		p.send(status, "POST", "/queue/pause", nil).says("it kept failing: see /commands/")
	}
}

// A worker that goes away while its lease is made does not keep it.
func TestWorkerGoneWhileLeasing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := start(t, gate{send: func(_ commands.Meta, c commands.Command) error {
		if _, ok := c.(commands.LeaseBuild); ok {
			cancel()
		}
		return nil
	}})
	p.send(204, "POST", "/worker/lease", leaseAsk)
	p.send(201, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "markupsafe", Version: "2.1.5"})
	build := markup
	p.jobs.put(&writeapi.Candidate{Build: &build})
	r := httptest.NewRequestWithContext(ctx, "POST", "/worker/lease", strings.NewReader(
		`{"worker":"w1","slots":2,"python_tag":"cp311","platform_tag":"linux_x86_64","python_version":"3.11.7","version":"dev","host":"h"}`))
	r.Header.Set("Content-Type", "application/json")
	p.bare.ServeHTTP(httptest.NewRecorder(), r)
	// The answer to a repeated enqueue comes after the release, which is in the same stream.
	p.send(200, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "markupsafe", Version: "2.1.5"})
	want := []string{"build.queued.v1", "build.leased.v1", "build.released.v1"}
	if got := names(p.stream(markup.Stream())); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
