package policies

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// flask needs flit to be built; jinja needs markupsafe to be built, and both need setuptools: a diamond. wheel is reused, colorama not needed.
func flaskPlan() (edges []events.Edge, nodes []events.Node) {
	return needs("flask>flit jinja>markupsafe jinja>setuptools markupsafe>setuptools"),
		[]events.Node{build("flask"), build("flit"), build("jinja"), build("markupsafe"), build("setuptools"), reuse("wheel"), skip("colorama")}
}

func TestRunInALoop(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	edges, nodes := flaskPlan()
	run := w.plan(edges, nodes...)
	w.wants("enqueue setuptools, enqueue flit, plan markupsafe, plan flask, plan jinja, reuse wheel")
	for name, status := range map[string]string{"setuptools": "queued", "flit": "queued", "markupsafe": "planned", "flask": "planned", "wheel": "reused", "colorama": ""} {
		if b := w.build(name); b.Status != status {
			t.Errorf("%s is %q, want %q", name, b.Status, status)
		}
	}
	if b := w.build("setuptools"); b.Priority != 2 { // the longest path first
		t.Errorf("setuptools has priority %d, want 2", b.Priority)
	}
	w.succeed("setuptools")
	w.wants("enqueue markupsafe")
	w.succeed("flit")
	w.wants("enqueue flask")
	w.succeed("flask")
	w.wants("")
	w.succeed("markupsafe")
	w.wants("enqueue jinja")
	w.succeed("jinja")
	w.wants("finish")
	end := w.finished(run)
	if got := manifest(end.Manifest); got != "flask built, flit built, jinja built, markupsafe built, setuptools built, wheel reused" {
		t.Errorf("manifest: %s", got)
	}
	if d := cmp.Diff(map[string]int{"built": 5, "reused": 1}, end.Counts); end.State != "built" || d != "" {
		t.Errorf("%s: %s", end.State, d)
	}
	want := events.ManifestEntry{
		Name: "flask", Version: "1", PythonTag: "cp311", PlatformTag: "any", Status: "built", Wheel: wheel("flask").Filename,
		SHA256: wheel("flask").SHA256, Size: 7, DurationMS: 5,
	}
	if end.Manifest[0] != want {
		t.Errorf("%+v", end.Manifest[0])
	}
	var left int
	if err := w.pool.QueryRow(t.Context(), `select count(*) from open_runs`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d runs are kept, %v", left, err)
	}

	// All is there already: the second run asks, is answered from what is there, and ends by itself.
	again := w.plan(edges, nodes...)
	w.settle(runs)
	if end := w.finished(again); end.State != "built" || end.Counts["reused"] != 6 || end.Manifest[0].SHA256 != wheel("flask").SHA256 {
		t.Errorf("%+v", end)
	}
}

// A failure stops only what depends on it, at any distance.
func TestFailureSkipsWhatDependsOnIt(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	run := w.plan(needs("b>a c>b d>c d>x y>x"), build("a"), build("b"), build("c"), build("d"), build("x"), build("y"))
	w.wants("enqueue a, plan b, plan c, enqueue x, plan d, plan y")
	w.failed("a")
	w.wants("skip b, skip c, skip d")
	w.succeed("x")
	w.wants("enqueue y")
	w.succeed("y")
	w.wants("finish")
	end := w.finished(run)
	if got := manifest(end.Manifest); end.State != "failed" || got != "a failed, b skipped, c skipped, d skipped, x built, y built" {
		t.Errorf("%s: %s", end.State, got)
	}
	if end.Manifest[0].Reason != "no gcc" || end.Manifest[1].Reason != "needs a 1, which is failed" {
		t.Errorf("%+v", end.Manifest[:2])
	}
	for name, status := range map[string]string{"a": "failed", "b": "skipped", "c": "skipped", "d": "skipped", "y": "built"} {
		if b := w.build(name); b.Status != status {
			t.Errorf("%s is %q, want %q", name, b.Status, status)
		}
	}
}

// The causes of commands can be followed back.
func TestReactionsNameTheirCause(t *testing.T) {
	w := newWorld(t)
	w.follow(Runs(w.pool, w.send))
	w.plan(nil, build("a"))
	w.settle(runs)
	m := w.messages()[0]
	recorded, err := w.log.Read(t.Context(), m.Meta.Causation-1, 1)
	if err != nil || len(recorded) != 1 || recorded[0].Event.Name() != "run.planned.v1" || recorded[0].Correlation != m.Meta.Correlation {
		t.Errorf("%+v of %+v, %v", m.Meta, recorded, err)
	}
	if m.Meta.Actor != "policy:runs" || m.Meta.ID == uuid.Nil {
		t.Errorf("%+v", m.Meta)
	}
}

func TestEmptyPlan(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	run := w.plan(nil, skip("a"))
	w.wants("finish")
	if end := w.finished(run); end.State != "built" || len(end.Manifest) != 0 {
		t.Errorf("%+v", end)
	}
}

// Two runs ask for the same builds: each is built once, and both end with it.
func TestTwoRunsShareBuilds(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	one := w.plan(needs("b>a"), build("a"), build("b"))
	two := w.plan(needs("c>a"), build("a"), build("c"))
	w.settle(runs)
	w.succeed("a")
	w.settle(runs)
	w.succeed("b", "c")
	w.settle(runs)
	for run, want := range map[uuid.UUID]string{one: "a built, b built", two: "a built, c built"} {
		if got := manifest(w.finished(run).Manifest); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if b := w.build("a"); b.Attempt != 1 {
		t.Errorf("a was built %d times", b.Attempt)
	}
}

// Cancelling a run leaves alone what another wants, and tells the worker of the rest.
func TestCancelWithASharedBuild(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	one := w.plan(needs("b>a"), build("a"), build("b"), build("x"))
	two := w.plan(nil, build("a"))
	w.settle(runs)
	w.lease("x")
	w.take()
	w.do(commands.CancelRun{Run: one, Reason: "no longer"})
	w.wants("cancel b, cancel x, finish")
	end := w.finished(one)
	if got := manifest(end.Manifest); end.State != "cancelled" || got != "a cancelled, b cancelled, x cancelled" || end.Manifest[0].Reason != "no longer" {
		t.Errorf("%s: %+v", end.State, end.Manifest)
	}
	for name, status := range map[string]string{"a": "queued", "b": "cancelled", "x": "cancelled"} {
		if b := w.build(name); b.Status != status {
			t.Errorf("%s is %s, want %s", name, b.Status, status)
		}
	}
	w.succeed("a")
	w.wants("finish")
	if end := w.finished(two); end.State != "built" {
		t.Errorf("%+v", end)
	}
}

// When the last run that wants a build is cancelled, the build is, too.
func TestCancelBoth(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	one, two := w.plan(nil, build("a")), w.plan(nil, build("a"))
	w.settle(runs)
	w.take()
	w.do(commands.CancelRun{Run: two})
	w.wants("finish")
	w.do(commands.CancelRun{Run: one})
	w.wants("cancel a, finish")
	if b := w.build("a"); b.Status != "cancelled" {
		t.Errorf("a is %s", b.Status)
	}
}

// A run is planned while the cancellation of another is on its way: it gets its build all the same.
func TestPlannedWhileAnotherIsCancelled(t *testing.T) {
	w := newWorld(t)
	w.follow(Runs(w.pool, w.send))
	one := w.plan(nil, build("a"))
	w.settle(runs)
	w.do(commands.CancelRun{Run: one})
	w.settle(runs)
	two := w.plan(nil, build("a"))
	w.settle(runs)
	for _, m := range w.messages() { // the bus is slow, and keeps the order
		w.handle(m)
	}
	w.take()
	w.closeLoop()
	w.succeed("a")
	w.wants("finish")
	if end := w.finished(two); end.State != "built" || manifest(end.Manifest) != "a built" {
		t.Errorf("%+v", end)
	}
}

// An attempt that began for another run fails before this run has asked: the failure is not this run's, which asks when it can. Otherwise
// its plan, which comes late, would leave the build planned for ever.
func TestFailureBeforeItAsked(t *testing.T) {
	w := newWorld(t)
	w.follow(Runs(w.pool, w.send))
	one := w.plan(nil, build("a"))
	w.settle(runs)
	w.handle(w.messages()[0])
	attempt := w.lease("a")
	w.take()
	two := w.plan(needs("a>b"), build("a"), build("b"))
	w.settle(runs)
	late := w.messages()
	w.wants("enqueue b, plan a")
	w.do(commands.FailBuild{Build: id("a"), Attempt: attempt, Worker: "w", Class: events.ClassOther, Reason: "x"})
	w.wants("") // not before the verdict
	w.do(commands.HintBuild{Build: id("a"), Attempt: attempt, Most: 1, FailedAt: noon})
	w.settle(runs)
	late = append(late, w.messages()...)
	w.wants("finish")
	for _, m := range late { // the bus is slow, and keeps the order
		w.handle(m)
	}
	w.closeLoop()
	w.succeed("b")
	w.wants("enqueue a")
	w.succeed("a")
	w.wants("finish")
	if state := w.finished(one).State + " " + w.finished(two).State; state != "failed built" {
		t.Error(state)
	}
}

// A build that somebody cancels is a wheel that the run does not get.
func TestBuildCancelledByHand(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	run := w.plan(needs("b>a"), build("a"), build("b"), build("c"))
	w.settle(runs)
	w.do(commands.CancelBuild{Build: id("c"), Reason: "by hand"})
	w.succeed("a")
	w.settle(runs)
	w.succeed("b")
	w.settle(runs)
	if end := w.finished(run); end.State != "cancelled" || manifest(end.Manifest) != "a built, b built, c cancelled" || end.Manifest[2].Reason != "by hand" {
		t.Errorf("%+v", end)
	}
}

// How a wheel ended for a run stays: what depends on it was given up, and somebody's later success does not change that.
func TestEndedStaysEnded(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	run := w.plan(needs("b>a"), build("a"), build("b"), build("c"))
	w.settle(runs)
	w.failed("a")
	w.settle(runs)
	w.queue("a")
	w.succeed("a")
	w.settle(runs)
	w.succeed("c")
	w.settle(runs)
	if end := w.finished(run); end.State != "failed" || manifest(end.Manifest) != "a failed, b skipped, c built" {
		t.Errorf("%+v", end)
	}
}

// A run that is done with a wheel does not keep another from cancelling its build.
func TestCancelWhatAnotherIsDoneWith(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	w.plan(nil, reuse("a"), build("b")) // goes on
	two := w.plan(nil, build("a"))
	w.settle(runs)
	w.take()
	w.do(commands.CancelRun{Run: two})
	w.wants("cancel a, finish")
}

// A lost worker is no failure: the run waits on.
func TestRunSurvivesLostWorker(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	run := w.plan(nil, build("a"))
	w.settle(runs)
	for range 2 {
		w.do(commands.ReleaseBuild{Build: id("a"), Attempt: w.lease("a"), Reason: "gone", Lost: true})
	}
	w.succeed("a")
	w.settle(runs)
	if end := w.finished(run); end.State != "built" {
		t.Errorf("%+v", end)
	}
}

// A new process goes on where the old one stopped.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	run := w.plan(needs("b>a c>b"), build("a"), build("b"), build("c"))
	w.wants("enqueue a, plan b, plan c")
	w.close()
	w.open()
	w.succeed("a") // nobody follows
	w.follow(Runs(w.pool, w.send))
	w.wants("enqueue b")
	w.close()
	w.open()
	w.follow(Runs(w.pool, w.send))
	w.succeed("b")
	w.settle(runs)
	w.succeed("c")
	w.settle(runs)
	if end := w.finished(run); end.State != "built" || len(end.Manifest) != 3 {
		t.Errorf("%+v", end)
	}
}

// The process dies between send and save, at every event: the commands that it sends again are the same, and are handled once.
func TestCrashBetweenSendAndSave(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	f := Runs(w.pool, w.send)
	tries := map[int64]int{}
	once := f.Apply
	f.Apply = func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		batch = batch[:1] // one event at a time
		first := tries[batch[0].Position] == 0
		tries[batch[0].Position]++
		if first {
			w.failing(errCrash)
			defer w.failing(nil)
		}
		err := once(ctx, c, batch)
		if err == nil && first {
			return errCrash // nothing was sent: it dies after the save
		}
		return err
	}
	w.follow(f)
	run := w.plan(needs("b>a"), build("a"), build("b"), reuse("r"))
	w.settle(runs)
	w.succeed("a")
	w.settle(runs)
	w.succeed("b")
	w.settle(runs)
	if end := w.finished(run); end.State != "built" || manifest(end.Manifest) != "a built, b built, r reused" {
		t.Errorf("%+v", end)
	}
	times := map[uuid.UUID]int{}
	first := map[uuid.UUID]Message{}
	var distinct []string
	for _, m := range w.messages() {
		if times[m.Meta.ID]++; times[m.Meta.ID] == 1 {
			first[m.Meta.ID] = m
			distinct = append(distinct, short(m))
		} else if d := cmp.Diff(first[m.Meta.ID], m); d != "" {
			t.Errorf("one id, two commands:\n%s", d)
		}
	}
	for id, n := range times {
		if n < 2 {
			t.Errorf("%s was sent %d times: it did not crash", short(first[id]), n)
		}
	}
	if got := strings.Join(distinct, ", "); got != "enqueue a, plan b, reuse r, enqueue b, finish" {
		t.Errorf("sent %s", got)
	}
}

// A restart from the very beginning of the log gives the same ids.
func TestReplayGivesTheSameIDs(t *testing.T) {
	w := newWorld(t)
	w.loop = true
	w.follow(Runs(w.pool, w.send))
	edges, nodes := flaskPlan()
	w.plan(edges, nodes...)
	w.settle(runs)
	w.succeed("setuptools", "flit")
	w.settle(runs)
	w.failed("markupsafe")
	w.succeed("flask")
	w.settle(runs)
	before := w.messages()
	w.take()
	w.close()
	if _, err := w.pool.Exec(t.Context(), `truncate followers, open_runs`); err != nil {
		t.Fatal(err)
	}
	w.open()
	head := w.log.Head()
	w.follow(Runs(w.pool, w.send))
	w.settle(runs)
	if d := cmp.Diff(before, w.messages()); d != "" || len(before) < 9 {
		t.Errorf("%d commands:\n%s", len(before), d)
	}
	if w.log.Head() != head {
		t.Errorf("%d events came of it", w.log.Head()-head)
	}
}

// The largest run that a person can cancel, with the longest reason: what the policy sends must be taken, or it would stand still for all.
func TestLargestRun(t *testing.T) {
	p := newPolicy()
	plan := events.RunPlanned{Plan: uuid.New()}
	for i := range 5_000 {
		n := build(strings.Repeat("n", 20) + uuid.NewSHA1(namespace, []byte{byte(i), byte(i >> 8)}).String())
		plan.Nodes = append(plan.Nodes, n)
	}
	run := uuid.New()
	cause := events.Recorded{Position: 1, Stream: events.RunStream(run), Event: plan}
	var out []Message
	begin := time.Now()
	p.react(cause, &out)
	cause.Position, cause.Event = 2, events.RunCancelled{Reason: strings.Repeat("<", 2_000)}
	r := p.react(cause, &out)[0]
	done, ok := r.finish()
	if !ok || len(done.Manifest) != 5_000 {
		t.Fatalf("%d entries", len(done.Manifest))
	}
	if _, err := commands.Encode(commands.Meta{ID: run}, done); err != nil {
		t.Errorf("the run cannot end: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
