package policies

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

const judging = "policy:hints"

func aHint(id, pattern string, apt ...string) events.Hint {
	h := events.Hint{ID: id, Pattern: pattern, Severity: "error"}
	if len(apt) > 0 {
		h.Recipes = []events.Recipe{{Kind: "apt", Items: apt}}
	}
	return h
}

// judged is a world in which failed attempts are judged. Hints are those of the log, logs what a test puts in.
type judged struct {
	*world
	logs  map[string]string // by stream
	reads atomic.Int64      // of the catalogue
}

func newJudged(t *testing.T, most int) *judged {
	j := &judged{world: newWorld(t), logs: map[string]string{}}
	j.loop = true
	j.follow(Hints(HintsOptions{
		Send: j.send, Most: most, Wait: time.Second,
		Known: func(ctx context.Context, position int64) ([]events.Hint, error) {
			j.reads.Add(1)
			all, err := j.log.Read(ctx, 0, int(position))
			known := map[string]events.Hint{}
			for _, m := range all {
				switch e := m.Event.(type) {
				case events.HintSaved:
					known[e.Hint.ID] = e.Hint
				case events.HintDeleted:
					id, _ := events.ParseHint(m.Stream)
					delete(known, id)
				}
			}
			var list []events.Hint
			for _, h := range known {
				list = append(list, h)
			}
			return list, err
		},
		Log: func(_ context.Context, stream string, _ int64) (io.Reader, int, error) {
			return strings.NewReader(j.logs[stream]), 11, nil
		},
	}))
	return j
}

// fail lets the next attempt fail with a log, and returns the verdict.
func (j *judged) fail(name, reason, log string) events.BuildHinted {
	j.Helper()
	a := j.lease(name)
	j.logs[id(name).Log(a)] = log
	j.do(commands.FailBuild{Build: id(name), Attempt: a, Worker: "w", Class: events.ClassMissingHeader, Reason: reason, Evidence: []string{"at the end"}, Backend: "mesonpy"})
	j.settle(judging)
	for _, e := range slices.Backward(j.stream(id(name).Stream())) {
		if e, ok := e.(events.BuildHinted); ok {
			return e
		}
	}
	j.Fatalf("%s: no verdict", name)
	return events.BuildHinted{}
}

func TestJudge(t *testing.T) {
	j := newJudged(t, 3)
	j.do(
		commands.SaveHint{Hint: aHint("libpq", `libpq-fe\.h: No such file`, "libpq-dev")},
		commands.SaveHint{Hint: aHint("gcc", `gcc.* failed`)},
		commands.SaveHint{Hint: aHint("evidence", `at the end`)},
		commands.SaveHint{Hint: events.Hint{ID: "elsewhere", Pattern: "libpq", Severity: "error", AppliesTo: events.AppliesTo{Packages: []string{"other"}}}},
		commands.SaveHint{Hint: events.Hint{ID: "scons", Pattern: "libpq", Severity: "error", AppliesTo: events.AppliesTo{BuildBackends: []string{"enscons.api"}}}},
		commands.EnqueueBuild{Build: id("a"), Sdist: sdist("a"), Priority: 4},
	)
	long := "x.h:1: fatal error: libpq-fe.h: No such file or directory" + strings.Repeat("é", 400)
	got := j.fail("a", "the header libpq-fe.h is missing", "compiling\n"+long+"\nerror: command 'gcc' failed\n")
	apt := []events.Recipe{{Kind: "apt", Items: []string{"libpq-dev"}}}
	want := events.BuildHinted{Attempt: 1, Retry: true, Hints: []events.HintMatch{
		{Hint: "libpq", Line: 12, Text: strings.ToValidUTF8(long[:500], ""), Recipes: apt},
		{Hint: "gcc", Line: 13, Text: "error: command 'gcc' failed"},
		{Hint: "evidence", Line: 0, Text: "at the end"},
	}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(want)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	all := j.stream(id("a").Stream())
	queued, ok := all[len(all)-1].(events.BuildQueued)
	if !ok || !slices.Equal(queued.Hints, []string{"libpq"}) || queued.Priority != 4 || queued.Sdist == nil || cmp.Diff(apt, queued.Recipes) != "" {
		t.Errorf("queued again as %+v", queued)
	}
	if b := j.build("a"); b.Status != "retrying" || time.Until(queued.NotBefore) > time.Second {
		t.Errorf("%s until %v", b.Status, queued.NotBefore)
	}
	// It fails otherwise, and nothing is known of that: the end.
	if got := j.fail("a", "other", "nothing\n"); got.Retry || got.Reason == "" || j.build("a").Status != "failed" {
		t.Errorf("%+v", got)
	}
	// What did it is said.
	j.do(commands.EnqueueBuild{Build: id("b"), Sdist: sdist("b")})
	j.fail("b", "the header libpq-fe.h is missing", "libpq-fe.h: No such file\n")
	j.succeed("b")
	all = j.stream(id("b").Stream())
	if e := all[len(all)-1].(events.BuildSucceeded); !slices.Equal(e.Hints, []string{"libpq"}) {
		t.Errorf("%+v", e)
	}
}

// The catalogue is read again only for a failure after a change, and what a verdict knows is what was saved before the failure.
func TestHintsAreReadWhenNeeded(t *testing.T) {
	j := newJudged(t, 3)
	j.do(commands.EnqueueBuild{Build: id("a"), Sdist: sdist("a")})
	if got := j.fail("a", "x", "broken\n"); len(got.Hints) != 0 {
		t.Errorf("%+v", got)
	}
	for i := range 20 {
		j.do(commands.SaveHint{Hint: aHint(fmt.Sprintf("h-%d", i), fmt.Sprintf("brok(en|-%d)", i))})
	}
	if n := j.reads.Load(); n != 1 {
		t.Errorf("the catalogue was read %d times", n)
	}
	for range 3 {
		j.do(commands.EnqueueBuild{Build: id("a")})
		if got := j.fail("a", "x", "broken\n"); len(got.Hints) != 20 {
			t.Errorf("%d hints match", len(got.Hints))
		}
	}
	j.do(commands.DeleteHint{ID: "h-3"}, commands.EnqueueBuild{Build: id("a")})
	if got := j.fail("a", "x", "broken\n"); len(got.Hints) != 19 {
		t.Errorf("%d hints match", len(got.Hints))
	}
	if n := j.reads.Load(); n != 3 {
		t.Errorf("the catalogue was read %d times", n)
	}
}

// With one attempt allowed nothing is tried again, and the verdict still says what the log means.
func TestOneAttempt(t *testing.T) {
	j := newJudged(t, 1)
	j.do(commands.SaveHint{Hint: aHint("libpq", `libpq`, "libpq-dev")}, commands.EnqueueBuild{Build: id("a"), Sdist: sdist("a")})
	got := j.fail("a", "x", "libpq\n")
	if got.Retry || len(got.Hints) != 1 || !strings.Contains(got.Reason, "MAX_ATTEMPTS") || j.build("a").Status != "failed" {
		t.Errorf("%+v", got)
	}
}

// A run goes on with what a hint mends, and with what needs it.
func TestRunWithAMendedBuild(t *testing.T) {
	j := newJudged(t, 3)
	j.follow(Runs(j.pool, j.send))
	j.do(commands.SaveHint{Hint: aHint("libpq", `libpq`, "libpq-dev")})
	run := j.plan(needs("b>a"), build("a"), build("b"))
	j.settle(runs, judging)
	j.fail("a", "x", "libpq\n")
	j.settle(runs, judging)
	j.succeed("a")
	j.settle(runs, judging)
	j.succeed("b")
	j.settle(runs, judging)
	if end := j.finished(run); end.State != "built" || manifest(end.Manifest) != "a built, b built" || end.Manifest[0].Reason != "" {
		t.Errorf("%+v", end)
	}
}

// Bringing the catalogue twice is bringing it once; what somebody did to it stays, and a newer entry replaces only what nobody touched.
func TestCatalogue(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	bring := func(list ...events.Hint) {
		messages, err := Catalogue(list)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.send(t.Context(), messages); err != nil {
			t.Fatal(err)
		}
	}
	saved := func(id string) (patterns []string) {
		for _, e := range w.stream(events.HintStream(id)) {
			if e, ok := e.(events.HintSaved); ok {
				patterns = append(patterns, e.Hint.Pattern)
			}
		}
		return patterns
	}
	bring(aHint("kept", "aaa"), aHint("edited", "aaa"), aHint("deleted", "aaa"))
	bring(aHint("kept", "aaa"), aHint("edited", "aaa"), aHint("deleted", "aaa"))
	if head := w.log.Head(); head != 3 {
		t.Errorf("%d events", head)
	}
	w.do(commands.SaveHint{Hint: aHint("edited", "mine")}, commands.DeleteHint{ID: "deleted"})
	bring(aHint("kept", "bbb"), aHint("edited", "bbb"), aHint("deleted", "bbb"))
	for id, want := range map[string][]string{"kept": {"aaa", "bbb"}, "edited": {"aaa", "mine"}, "deleted": {"aaa"}} {
		if got := saved(id); !slices.Equal(got, want) {
			t.Errorf("%s was saved as %v, want %v", id, got, want)
		}
	}
	// So it is known without sending it whether it was brought.
	messages, err := Catalogue([]events.Hint{aHint("kept", "aaa")})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := w.log.Outcomes(t.Context(), messages[0].Meta.ID); err != nil || o[messages[0].Meta.ID].Status != eventlog.Applied {
		t.Error("an entry that says the same has another id")
	}
}

// A process that follows again after another one did knows the hints of the meantime.
func TestJudgeAfterAnother(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	hint := aHint("one", "first")
	policy := Hints(HintsOptions{
		Send: w.send, Most: 3, Wait: time.Second,
		Known: func(context.Context, int64) ([]events.Hint, error) { return []events.Hint{hint}, nil },
		Log: func(context.Context, string, int64) (io.Reader, int, error) {
			return strings.NewReader("first\nsecond\n"), 1, nil
		},
	})
	other := policy
	other.Apply = func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		return c.Save(ctx, batch[len(batch)-1].Position, nil)
	}
	run := func(f eventlog.Follower, c commands.Command) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.log.Run(ctx, f) }()
		w.do(c)
		w.settle(judging)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for i, want := range []string{"one", "two"} {
		name := fmt.Sprint("b", i)
		w.do(commands.EnqueueBuild{Build: id(name), Sdist: sdist(name)})
		a := w.lease(name)
		run(policy, commands.FailBuild{Build: id(name), Attempt: a, Worker: "w", Class: events.ClassCompiler, Reason: "why"})
		var got []string
		for _, e := range w.stream(id(name).Stream()) {
			if e, ok := e.(events.BuildHinted); ok && len(e.Hints) > 0 {
				got = append(got, e.Hints[0].Hint)
			}
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("build %d is judged by %v, want %s", i, got, want)
		}
		hint = aHint("two", "second")
		run(other, commands.SaveHint{Hint: hint})
	}
}
