package writeapi_test

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/writeapi"
)

var submission = api.RunSubmission{
	Requirements: "flask\n", Constraints: "werkzeug<4\n", Strategy: "pinned", Build: "names", Names: []string{"Markup_Safe"}, Python: "3.11",
}

func TestRun(t *testing.T) {
	p := start(t, gate{})
	a := p.send(201, "POST", "/runs", submission)
	run := into[api.RunAnswer](a)
	if run.State != "submitted" || a.Header().Get("Location") != "/runs/"+run.ID.String() || a.Header().Get("Refinery-Position") != "1" {
		t.Errorf("%+v %v", run, a.Header())
	}
	evs := p.stream(events.RunStream(run.ID))
	want := events.RunSubmitted{Requirements: "flask\n", Constraints: "werkzeug<4\n", Python: "3.11", Strategy: "pinned", Build: "names", Names: []string{"markup-safe"}}
	if len(evs) != 1 || !reflect.DeepEqual(evs[0].Event, events.Event(want)) || evs[0].Actor != "192.0.2.1" {
		t.Errorf("%+v", evs)
	}
	p.send(422, "POST", "/runs", `{"requirements":"a","strategy":"pinned","build":"names"}`).says("/names")
	p.send(400, "POST", "/runs", `{"requirements":"a","strategy":"sideways","build":"all"}`).says("/strategy")

	// A worker leases the planning and reports.
	submitted := evs[0].Event.(events.RunSubmitted)
	p.jobs.put(&writeapi.Candidate{Run: run.ID, Submitted: submitted})
	job := into[api.Job](p.send(200, "POST", "/worker/lease", leaseAsk))
	if job.Kind != "plan" || job.RunID != run.ID || job.Attempt != 1 || job.Requirements != "flask\n" || job.ConstraintsText != "werkzeug<4\n" ||
		job.BuildMode != "names" || job.LeaseSeconds != 60 || job.IndexURL == "" || job.ExpiresAt.IsZero() {
		t.Errorf("%+v", job)
	}
	report := api.PlanReport{
		Worker: "w1", RunID: run.ID, Attempt: 1, PythonTag: "cp311", PlatformTag: "linux_x86_64", DurationMS: 12,
		Nodes: []api.Node{
			{
				Name: "markupsafe", Version: "2.1.5", PythonTag: "cp311", PlatformTag: "linux_x86_64", Action: "build", Reason: "asked", Root: true,
				Sdist: api.File{Filename: "markupsafe-2.1.5.tar.gz", URL: "https://example.org/m.tar.gz", SHA256: strings.Repeat("a", 64), Size: 5},
			},
			{
				Name: "setuptools", Version: "75.1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Action: "reuse", Reason: "published-wheel",
				Wheel: api.File{Filename: "setuptools-75.1.0-py3-none-any.whl", SHA256: strings.Repeat("b", 64)},
			},
		},
		Edges: []api.Edge{{From: "markupsafe/2.1.5", To: "setuptools/75.1.0", Kind: "build"}},
	}
	both := report
	both.Released = true
	p.send(422, "POST", "/plan", both).says("exactly one")
	p.send(422, "POST", "/plan", api.PlanReport{Worker: "w1", RunID: run.ID, Attempt: 1}).says("exactly one")
	wrong := report
	wrong.Edges = []api.Edge{{From: "markupsafe/2.1.5", To: "nothing/1", Kind: "build"}}
	p.send(422, "POST", "/plan", wrong).says("/edges/0/to")
	late := report
	late.Attempt = 2
	p.send(409, "POST", "/plan", late)
	planned := into[api.PlanAnswer](p.send(201, "POST", "/plan", report))
	if planned.RunID != run.ID || planned.PlanID == uuid.Nil || planned.State != "planned" {
		t.Errorf("%+v", planned)
	}
	plan := p.stream(events.RunStream(run.ID))[2].Event.(events.RunPlanned)
	if plan.Plan != planned.PlanID || plan.Nodes[0].Sdist.Size != 5 || plan.Nodes[0].Wheel != nil || plan.Nodes[1].Wheel == nil || len(plan.Edges) != 1 {
		t.Errorf("%+v", plan)
	}
	p.send(409, "POST", "/plan", report)

	entry := api.ManifestEntry{Name: "markupsafe", Version: "2.1.5", PythonTag: "cp311", PlatformTag: "linux_x86_64", Status: "built"}
	m := into[api.ManifestAnswer](p.send(201, "POST", "/manifest", api.ManifestReport{Worker: "w1", RunID: run.ID, Entries: []api.ManifestEntry{entry, entry}}))
	if m.Entries != 2 {
		t.Errorf("%+v", m)
	}
	if got := into[api.RunAnswer](p.send(200, "POST", "/runs/"+run.ID.String()+"/cancel", `{"reason":"enough"}`)); got.State != "cancelled" {
		t.Errorf("%+v", got)
	}
	p.send(409, "POST", "/runs/"+run.ID.String()+"/cancel", nil)
	p.send(404, "POST", "/runs/"+uuid.NewString()+"/cancel", nil)
	p.send(404, "POST", "/manifest", api.ManifestReport{Worker: "w1", RunID: uuid.New(), Entries: []api.ManifestEntry{entry}})
}

// Planning that fails, and planning that is handed back.
func TestRunWithoutPlan(t *testing.T) {
	p := start(t, gate{})
	run := into[api.RunAnswer](p.send(201, "POST", "/runs", submission)).ID
	stream := events.RunStream(run)
	candidate := &writeapi.Candidate{Run: run, Submitted: p.stream(stream)[0].Event.(events.RunSubmitted)}
	p.jobs.put(candidate)
	p.send(200, "POST", "/worker/lease", leaseAsk)
	p.send(200, "POST", "/plan", api.PlanReport{Worker: "w1", RunID: run, Attempt: 1, Released: true, Reason: "stopping"})
	candidate.Attempts = 1
	p.jobs.put(candidate)
	if job := into[api.Job](p.send(200, "POST", "/worker/lease", leaseAsk)); job.Attempt != 2 {
		t.Errorf("attempt %d", job.Attempt)
	}
	answer := into[api.PlanAnswer](p.send(200, "POST", "/plan", api.PlanReport{
		Worker: "w1", RunID: run, Attempt: 2, Error: &api.PlanError{Class: "resolve", Reason: "no such package", Detail: []string{"a"}},
	}))
	if answer.State != "failed" {
		t.Errorf("%+v", answer)
	}
	want := []string{"run.submitted.v1", "run.plan_leased.v1", "run.plan_released.v1", "run.plan_leased.v1", "run.plan_failed.v1"}
	if got := names(p.stream(stream)); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func form(t *testing.T, fields ...string) (*bytes.Buffer, string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for pair := range slices.Chunk(fields, 2) {
		var err error
		if pair[0] == "requirements" {
			var f io.Writer
			if f, err = w.CreateFormFile(pair[0], "requirements.txt"); err == nil {
				_, err = io.WriteString(f, pair[1])
			}
		} else {
			err = w.WriteField(pair[0], pair[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b, w.FormDataContentType()
}

func TestRunUpload(t *testing.T) {
	p := start(t, gate{})
	body, ct := form(t, "requirements", "flask==3.0\n", "strategy", "upgrade", "build", "names", "names", "A.b", "names", "c")
	run := into[api.RunAnswer](p.send(201, "POST", "/runs", body, "Content-Type", ct))
	got := p.stream(events.RunStream(run.ID))[0].Event.(events.RunSubmitted)
	if got.Requirements != "flask==3.0\n" || got.Strategy != "upgrade" || !slices.Equal(got.Names, []string{"a-b", "c"}) {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		status int
		fields []string
		says   string
	}{
		{422, []string{"requirements", "a", "build", "all"}, "/strategy"},
		{422, []string{"strategy", "pinned", "build", "all"}, "/requirements"},
		{422, []string{"requirements", "a\x00", "strategy", "pinned", "build", "all"}, "/requirements"},
		{422, []string{"requirements", "a", "colour", "red"}, "not known"},
		{422, []string{"requirements", "a", "requirements", "b"}, "twice"},
		{413, []string{"requirements", strings.Repeat("a", 2<<20)}, "2097152"},
	} {
		body, ct := form(t, c.fields...)
		p.send(c.status, "POST", "/runs", body, "Content-Type", ct).says(c.says)
	}
	body, ct = form(t, "requirements", "a", "strategy", "pinned", "build", "all")
	body.Truncate(body.Len() - 20)
	p.send(422, "POST", "/runs", body, "Content-Type", ct).says("to its end")
	p.send(415, "POST", "/runs", strings.NewReader("flask"), "Content-Type", "text/plain")
}

func TestBuild(t *testing.T) {
	p := start(t, gate{})
	stream := markup.Stream()
	request := api.EnqueueRequest{Package: "Markup.Safe", Version: "v2.1.5", Priority: 3, Recipes: []api.Recipe{{Kind: "apt", Items: []string{"gcc"}}}}
	p.send(422, "POST", "/queue/enqueue", request).says("no worker")
	p.send(204, "POST", "/worker/lease", leaseAsk)
	p.send(422, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "a", Version: "not-a-version"}).says("PEP 440")
	request.Package = "Markup_Safe"
	if got := into[api.EnqueueAnswer](p.send(201, "POST", "/queue/enqueue", request)); got.Build.Name != "markup-safe" || got.Build.PythonTag != "cp311" {
		t.Errorf("%+v", got)
	}
	request.Package = "MarkupSafe"
	a := p.send(201, "POST", "/queue/enqueue", request)
	if got := into[api.EnqueueAnswer](a); got.Build != named(markup) || got.Deduplicated || got.Status != "queued" || got.Priority != 3 ||
		a.Header().Get("Location") != "/builds/markupsafe/2.1.5/cp311/linux_x86_64" {
		t.Errorf("%+v %v", got, a.Header())
	}
	request.Package, request.Priority = "markupsafe", 9
	if got := into[api.EnqueueAnswer](p.send(200, "POST", "/queue/enqueue", request)); !got.Deduplicated || got.Priority != 3 {
		t.Errorf("%+v", got)
	}

	// Somebody else was quicker with the first candidate.
	taken := events.BuildID{Name: "taken", Version: "1", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	sdist := &events.File{Filename: "m.tar.gz", URL: "https://example.org/m", SHA256: strings.Repeat("a", 64)}
	mine := &writeapi.Candidate{Build: &markup, Sdist: sdist, Constraints: []string{"setuptools==75"}, Recipes: []events.Recipe{{Kind: "apt", Items: []string{"gcc"}}}}
	p.jobs.put(&writeapi.Candidate{Build: &taken}, mine)
	job := into[api.Job](p.send(200, "POST", "/worker/lease", leaseAsk))
	if job.Kind != "build" || job.Build != named(markup) || job.Attempt != 1 || job.Sdist.URL != sdist.URL || len(job.Recipes) != 1 || len(job.Constraints) != 1 {
		t.Errorf("%+v", job)
	}
	if p.jobs.done != 2 {
		t.Errorf("%d candidates are done", p.jobs.done)
	}

	result := func(status api.ResultStatus) api.ResultReport {
		return api.ResultReport{Worker: "w1", Build: markupAPI, Attempt: 1, Status: status}
	}
	if got := into[api.BuildAnswer](p.send(200, "POST", "/worker/result", result("building"))); got.Status != "building" || got.Attempt != 1 {
		t.Errorf("%+v", got)
	}

	// Heartbeats.
	beat := api.HeartbeatRequest{Worker: "w1", Jobs: []api.JobRef{{Kind: "build", Build: markupAPI, Attempt: 1}, {Kind: "plan", RunID: uuid.New(), Attempt: 1}}}
	beats := into[api.HeartbeatAnswer](p.send(200, "POST", "/worker/heartbeat", beat))
	if beats.Action != "continue" || beats.IntervalSeconds != 10 || beats.Jobs[0].Action != "continue" || beats.Jobs[1].Action != "lost" {
		t.Errorf("%+v", beats)
	}
	beat.Jobs[0].Attempt = 2
	if got := into[api.HeartbeatAnswer](p.send(200, "POST", "/worker/heartbeat", beat)); got.Jobs[0].Action != "lost" {
		t.Errorf("%+v", got)
	}

	// The log.
	logs := "/logs/MarkupSafe/2.1.5?python_tag=cp311&platform_tag=linux_x86_64&attempt=1"
	if got := into[api.LogAnswer](p.send(200, "POST", logs, api.LogChunk{Chunk: 0, Text: "one\ntwo\n"})); got.NextChunk != 1 || got.Lines != 2 {
		t.Errorf("%+v", got)
	}
	p.send(200, "POST", logs, api.LogChunk{Chunk: 0, Text: "one\ntwo\n"})
	p.send(409, "POST", logs, api.LogChunk{Chunk: 2, Text: "three\n"}).says("chunk 1")
	if n := len(p.stream(markup.Log(1))); n != 1 {
		t.Errorf("%d chunks", n)
	}
	p.send(422, "POST", logs, api.LogChunk{Chunk: 1, Text: strings.Repeat("ü", 40_000)}).says("/text")
	p.send(400, "POST", logs, `{"chunk":1,"text":"a\u0000"}`).says("NUL")
	p.send(400, "POST", "/logs/markupsafe/2.1.5", api.LogChunk{Chunk: 0, Text: "x"})

	// The wheel.
	content, sum := makeWheel(t, "2.1.5", "")
	built := result("built")
	p.send(422, "POST", "/worker/result", built).says("/wheel")
	built.Wheel = api.WheelRef{Filename: wheelName, SHA256: sum, Size: int64(len(content))}
	p.send(422, "POST", "/worker/result", built).says("/wheel/sha256")
	put := func(status int, name string, content []byte, sum, build, attempt string) answer {
		t.Helper()
		return p.send(status, "PUT", "/artifacts/"+name, bytes.NewReader(content), "Content-Type", "application/octet-stream",
			"X-Content-SHA256", sum, "X-Build", build, "X-Attempt", attempt)
	}
	put(422, wheelName, content, strings.Repeat("0", 64), markup.String(), "1").says("SHA-256")
	put(422, wheelName, content, sum, "other/2.1.5/cp311/linux_x86_64", "1").says("X-Build")
	put(422, "markupsafe-2.1.5-cp311-abi3-linux_x86_64.whl", content, sum, markup.String(), "1").says("Tag lines")
	bad, badSum := makeWheel(t, "2.1.6", "")
	put(422, wheelName, bad, badSum, markup.String(), "1").says("Version in METADATA")
	put(400, wheelName, content, sum, markup.String(), "0").says("header:X-Attempt")
	put(400, "evil.txt", content, sum, markup.String(), "1").says("path:filename")
	if left := stored(t, p.store); len(left) != 0 {
		t.Errorf("refused wheels are in the store: %v", left)
	}
	for range 2 {
		a := put(201, wheelName, content, sum, markup.String(), "1")
		if got := into[api.ArtifactAnswer](a); got != (api.ArtifactAnswer{Filename: wheelName, SHA256: sum, Size: int64(len(content)), URL: "/artifacts/" + wheelName}) ||
			a.Header().Get("Location") != got.URL {
			t.Errorf("%+v", got)
		}
	}
	published := p.stream(events.ArtifactStream(wheelName))
	if len(published) != 1 || len(stored(t, p.store)) != 2 { // the wheel and its metadata
		t.Fatalf("%d events, %v", len(published), stored(t, p.store))
	}
	if e := published[0].Event.(events.ArtifactPublished); e.Project != "markupsafe" || e.RequiresPython != ">=3.7" || e.Tags[0] != "cp311-cp311-linux_x86_64" {
		t.Errorf("%+v", e)
	}
	other, otherSum := makeWheel(t, "2.1.5", "x")
	put(409, wheelName, other, otherSum, "markupsafe/2.1.5/cp311/musllinux_1_2_x86_64", "1").says(sum)

	// The end.
	if got := into[api.BuildAnswer](p.send(200, "POST", "/worker/result", built)); got.Status != "built" {
		t.Errorf("%+v", got)
	}
	p.send(200, "POST", "/worker/result", built) // repeated
	p.send(409, "POST", "/worker/result", api.ResultReport{Worker: "w1", Build: markupAPI, Attempt: 1, Status: "failed", Class: "other", Reason: "late"})
	if got := into[api.EnqueueAnswer](p.send(200, "POST", "/queue/enqueue", request)); got.Status != "reused" || !got.Deduplicated {
		t.Errorf("%+v", got)
	}
	p.yanked = true
	if got := into[api.EnqueueAnswer](p.send(201, "POST", "/queue/enqueue", request)); got.Status != "queued" || got.Deduplicated {
		t.Errorf("%+v of a yanked wheel", got)
	}
	want := []string{"build.queued.v1", "build.leased.v1", "build.started.v1", "build.succeeded.v1", "build.reused.v1", "build.queued.v1"}
	evs := p.stream(stream)
	if got := names(evs); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if evs[1].Actor != "worker/w1" {
		t.Errorf("actor %s", evs[1].Actor)
	}
	if evs := p.stream(events.WorkerStream("w1")); len(evs) != 1 {
		t.Errorf("the worker is registered %d times", len(evs))
	}
}

func named(id events.BuildID) api.BuildID {
	return api.BuildID{Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag}
}

// stored lists the blobs of a store, and what is half written.
func stored(t *testing.T, path string) []string {
	found, err := filepath.Glob(filepath.Join(path, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestResults(t *testing.T) {
	p := start(t, gate{})
	id := api.BuildID{Name: "a", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	build := events.BuildID{Name: "a", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	path := "/builds/A/1.0/cp311/linux_x86_64/cancel"
	p.send(404, "POST", path, nil)
	p.send(404, "POST", "/worker/result", api.ResultReport{Worker: "w1", Build: id, Attempt: 1, Status: "building"})
	p.send(201, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "a", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"})
	lease := func(attempts int) api.Job {
		t.Helper()
		p.jobs.put(&writeapi.Candidate{Build: &build, Attempts: attempts})
		return into[api.Job](p.send(200, "POST", "/worker/lease", leaseAsk))
	}
	lease(0)
	p.send(200, "POST", "/worker/result", api.ResultReport{Worker: "w1", Build: id, Attempt: 1, Status: "released", Reason: "stopping"})
	if job := lease(0); job.Attempt != 2 { // the stream knows better than a read model that is behind
		t.Errorf("attempt %d", job.Attempt)
	}
	p.send(422, "POST", "/worker/result", api.ResultReport{Worker: "w1", Build: id, Attempt: 2, Status: "failed"}).says("/class")
	p.send(409, "POST", "/worker/result", api.ResultReport{Worker: "w1", Build: id, Attempt: 1, Status: "failed", Class: "other", Reason: "r"})
	p.send(200, "POST", "/worker/result", api.ResultReport{Worker: "w1", Build: id, Attempt: 2, Status: "failed", Class: "compiler", Reason: "r", Evidence: []string{"x"}})
	p.send(200, "POST", path, nil) // there is no verdict yet, so it might be tried again
	p.send(409, "POST", path, nil)
	p.send(201, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "a", Version: "1.0"})
	if got := into[api.BuildAnswer](p.send(200, "POST", path, `{"reason":"no"}`)); got.Status != "cancelled" || got.Attempt != 2 {
		t.Errorf("%+v", got)
	}
	// Workers that differ leave the tags open.
	other := leaseAsk
	other.Worker, other.PythonTag = "w2", "cp312"
	p.send(204, "POST", "/worker/lease", other)
	p.send(422, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "a", Version: "1.0"}).says("different")
	other.Kinds = []api.JobKind{"plan"}
	p.send(204, "POST", "/worker/lease", other)
	if w := p.jobs.asked[len(p.jobs.asked)-1]; !w.Plans || w.Builds || w.PythonTag != "cp312" {
		t.Errorf("%+v", w)
	}
}

func TestQueue(t *testing.T) {
	p := start(t, gate{})
	if got := into[api.ClearAnswer](p.send(200, "POST", "/queue/clear", nil)); got.Cleared != 7 || p.cleared != 1 {
		t.Errorf("%+v at %d", got, p.cleared)
	}
	p.send(200, "POST", "/queue/clear", `{"include_leased":true,"reason":"r"}`)
	if e := p.stream(events.QueueStream)[1].Event.(events.QueueCleared); !e.IncludeLeased || e.Reason != "r" {
		t.Errorf("%+v", e)
	}
	for range 2 {
		if got := into[api.QueueState](p.send(200, "POST", "/queue/pause", nil)); !got.Paused {
			t.Error("not paused")
		}
	}
	if got := into[api.QueueState](p.send(200, "POST", "/queue/resume", nil)); got.Paused {
		t.Error("paused")
	}
	if got := names(p.stream(events.QueueStream)); len(got) != 4 {
		t.Errorf("%v", got)
	}
	p.send(202, "POST", "/queue/clear", nil, "Prefer", "respond-async")
}

func TestIdempotency(t *testing.T) {
	p := start(t, gate{})
	key := []string{"Idempotency-Key", "k1"}
	first := into[api.RunAnswer](p.send(201, "POST", "/runs", submission, key...))
	second := into[api.RunAnswer](p.send(201, "POST", "/runs", submission, key...))
	if first != second {
		t.Errorf("%+v, %+v", first, second)
	}
	if got := names(p.stream(events.RunStream(first.ID))); len(got) != 1 {
		t.Errorf("%v", got)
	}
	// Written differently, but the same request.
	p.send(201, "POST", "/runs", `{"build":"names","strategy":"pinned","names":["markup.safe"],"python":"3.11","constraints":"werkzeug<4\n","requirements":"flask\n"}`, key...)
	changed := submission
	changed.Requirements = "django\n"
	p.send(422, "POST", "/runs", changed, key...).says("Idempotency-Key")
	// The key is of one path.
	p.send(200, "POST", "/queue/pause", nil, key...)
	if other := into[api.RunAnswer](p.send(201, "POST", "/runs", submission, "Idempotency-Key", "k2")); other.ID == first.ID {
		t.Error("another key is the same run")
	}
}

func TestAsync(t *testing.T) {
	p := start(t, gate{})
	a := p.send(202, "POST", "/runs", submission, "Prefer", "wait=10, Respond-Async;x=1")
	c := into[api.Command](a)
	if a.Header().Get("Location") != "/commands/"+c.ID.String() || a.Header().Get("Preference-Applied") != "respond-async" || c.Status != "pending" || c.Name != "run.submit" {
		t.Errorf("%+v %v", c, a.Header())
	}
	wait, forget := p.log.Expect(c.ID)
	defer forget()
	if o, err := wait(t.Context()); err != nil || o.Status != "applied" {
		t.Errorf("%+v, %v", o, err)
	}
}

// A client that goes away in the middle of an upload leaves nothing.
func TestAbortedUploadLeavesNothing(t *testing.T) {
	p := start(t, gate{})
	p.send(400, "PUT", "/artifacts/"+wheelName, &cut{n: 100_000}, "Content-Type", "application/octet-stream", "X-Content-SHA256",
		strings.Repeat("a", 64), "X-Build", markup.String(), "X-Attempt", "1").says("ended early")
	if left := stored(t, p.store); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if _, err := os.Stat(p.store); err != nil {
		t.Error(err)
	}
}

// cut is a body that ends with its connection.
type cut struct{ n int }

func (c *cut) Read(b []byte) (int, error) {
	if c.n <= 0 {
		return 0, http.ErrBodyReadAfterClose
	}
	c.n -= len(b)
	return len(b), nil
}
