package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/api/apitest"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// control is a whole control plane behind its HTTP address, whose answers are checked against the contract.
type control struct {
	*testing.T
	*plane
	checked http.Handler
}

func startControl(t *testing.T, change ...func(*controlSettings)) *control {
	t.Helper()
	return startControlIn(t, t.TempDir(), pgtest.DSN(t), change...)
}

// startControlIn starts one of several that share a folder and a database.
func startControlIn(t *testing.T, dir, dsn string, change ...func(*controlSettings)) *control {
	t.Helper()
	c := controlSettings{PostgresDSN: dsn, QueueBackend: "file", HTTPAddr: freeAddr(t), KeepOutcomes: time.Hour, MaxAttempts: 1}
	for _, f := range change {
		f(&c)
	}
	p, err := startPlane(t.Context(), c, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	address, err := url.Parse(p.url())
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(address) }}
	return &control{t, p, apitest.Check(t, proxy)}
}

// call sends a request, fails the test unless the answer has the status, and decodes it.
func (c *control) call(want int, method, path string, body, into any, headers ...string) http.Header {
	c.Helper()
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			c.Fatal(err)
		}
	}
	r := httptest.NewRequest(method, path, bytes.NewReader(data)).WithContext(c.Context())
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	c.checked.ServeHTTP(w, r)
	if w.Code != want {
		c.Fatalf("%s %s: %d, want %d: %s", method, path, w.Code, want, w.Body)
	}
	if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			c.Fatalf("%v: %s", err, w.Body)
		}
	}
	return w.Header()
}

func (c *control) enqueue(name string, priority int) {
	c.Helper()
	c.call(201, "POST", "/queue/enqueue", api.EnqueueRequest{
		Package: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Priority: priority,
	}, nil)
}

// lease takes the next job as worker; "": there is none.
func (c *control) lease(worker string) (name string, attempt int) {
	c.Helper()
	return c.leaseWithin(worker, 0)
}

func (c *control) leaseWithin(worker string, seconds int) (name string, attempt int) {
	body, err := json.Marshal(api.LeaseRequest{
		Worker: worker, Slots: 1, PythonTag: "cp311", PlatformTag: "linux_x86_64", PythonVersion: "3.11.7", Kinds: []api.JobKind{api.JobKindBuild},
		WaitSeconds: seconds,
	})
	if err != nil {
		c.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/worker/lease", bytes.NewReader(body)).WithContext(c.Context())
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	c.checked.ServeHTTP(w, r)
	if w.Code == http.StatusNoContent {
		return "", 0
	}
	var job api.Job
	if err := json.Unmarshal(w.Body.Bytes(), &job); err != nil || w.Code != http.StatusOK {
		c.Fatalf("%d %v: %s", w.Code, err, w.Body)
	}
	return job.Build.Name, job.Attempt
}

func id(name string) api.BuildID {
	return api.BuildID{Name: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
}

func path(name, action string) string { return "/builds/" + name + "/1.0/cp311/linux_x86_64/" + action }

func (c *control) fail(worker string) (name string) {
	c.Helper()
	name, attempt := c.lease(worker)
	c.call(200, "POST", "/worker/result", api.ResultReport{
		Worker: worker, Build: id(name), Attempt: attempt, Status: api.ResultStatusFailed, Class: "compiler", Reason: "no gcc",
	}, nil)
	return name
}

func (c *control) status(name string) (b api.Build) {
	c.Helper()
	c.call(200, "GET", strings.TrimSuffix(path(name, ""), "/"), nil, &b)
	return b
}

// Who enqueues what is queued already is answered when it can be read, though another command queued it.
func TestEnqueuedTwice(t *testing.T) {
	c := startControl(t)
	lock, err := c.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := lock.Exec(t.Context(), `lock table builds.builds in exclusive mode`); err != nil { // reads go on, writes wait
		t.Fatal(err)
	}
	body := api.EnqueueRequest{Package: "twice", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	accepted := c.call(202, "POST", "/queue/enqueue", body, nil, "Prefer", "respond-async")
	eventually(t, 10*time.Second, func() error {
		var state api.Command
		if c.call(200, "GET", accepted.Get("Location"), nil, &state); state.Status != api.CommandStatusApplied {
			return fmt.Errorf("the command is %s", state.Status)
		}
		return nil
	})
	released := make(chan struct{})
	time.AfterFunc(500*time.Millisecond, func() { close(released); _ = lock.Rollback(context.WithoutCancel(t.Context())) })
	c.call(200, "POST", "/queue/enqueue", body, nil)
	select {
	case <-released:
	default:
		t.Error("it was answered before it could be read")
	}
	c.status("twice")
}

func TestRetryAndPriority(t *testing.T) { onEachBackend(t, testRetryAndPriority) }

func testRetryAndPriority(t *testing.T, c *control) {
	c.call(404, "POST", path("a", "retry"), nil, nil)
	c.call(404, "POST", path("a", "priority"), api.PriorityRequest{Priority: 1}, nil)
	c.enqueue("a", 0)
	c.enqueue("b", 5)
	c.call(409, "POST", path("a", "retry"), nil, nil)
	c.call(200, "POST", path("a", "priority"), api.PriorityRequest{Priority: 9}, nil)
	if got := c.status("a").Priority; got != 9 {
		t.Errorf("priority %d", got)
	}
	var queue api.QueueList
	c.call(200, "GET", "/queue", nil, &queue)
	if len(queue.Items) != 2 || queue.Items[0].Name != "a" || queue.Items[0].Priority != 9 {
		t.Errorf("%+v", queue.Items)
	}
	if got := c.fail("w1"); got != "a" {
		t.Errorf("leased %s first", got)
	}
	priority := -3
	var answer api.BuildAnswer
	c.call(200, "POST", path("a", "retry"), api.RetryRequest{
		Recipes: []api.Recipe{{Kind: "apt", Items: []string{"gcc"}}}, Priority: &priority,
	}, &answer)
	if answer.Status != api.BuildStatusQueued || answer.Attempt != 1 || c.status("a").Priority != -3 {
		t.Errorf("%+v", answer)
	}
	c.call(409, "POST", path("a", "retry"), nil, nil)
	if name, _ := c.lease("w1"); name != "b" {
		t.Errorf("leased %q", name)
	}
	c.call(409, "POST", path("b", "priority"), api.PriorityRequest{Priority: 1}, nil)
	c.call(400, "POST", path("b", "priority"), map[string]any{"priority": 1, "why": "x"}, nil)
}

// Several workers together take what waits in the order of priority, and of age where that is the same.
func TestLeaseOrder(t *testing.T) { onEachBackend(t, testLeaseOrder) }

func testLeaseOrder(t *testing.T, c *control) {
	c.call(200, "POST", "/queue/pause", nil, nil)
	const each = 10
	for i := range each {
		for _, priority := range []int{0, 7, -7} {
			c.enqueue(fmt.Sprintf("p%d-%d", priority+7, i), priority)
		}
	}
	if name, _ := c.lease("w1"); name != "" {
		t.Errorf("leased %s while the queue is paused", name)
	}
	c.call(200, "POST", "/queue/resume", nil, nil)
	var wg sync.WaitGroup
	for n := range 5 {
		wg.Go(func() {
			for {
				if name, _ := c.lease(fmt.Sprintf("w%d", n)); name == "" {
					return
				}
			}
		})
	}
	wg.Wait()
	// The log has the order; what two asked for at the same time may be leased the other way round, by at most as many places.
	rows, err := c.pool.Query(t.Context(), `select split_part(stream, '/', 2) from events where type = 'build.leased.v1' order by position`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		got = append(got, name)
	}
	var want []string
	for _, priority := range []int{14, 7, 0} {
		for i := range each {
			want = append(want, fmt.Sprintf("p%d-%d", priority, i))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d leases of %d builds: %v", len(got), len(want), got)
	}
	for at, name := range got {
		if off := at - slices.Index(want, name); off < -4 || off > 4 {
			t.Errorf("%s is leased as number %d, want %d: %v", name, at, slices.Index(want, name), got)
		}
	}
}

// After an answered pause no lease is made, however many workers are asking, until the queue is resumed.
func TestPauseIsSharp(t *testing.T) { onEachBackend(t, testPauseIsSharp) }

func testPauseIsSharp(t *testing.T, c *control) {
	for i := range 60 {
		c.enqueue(fmt.Sprintf("a%d", i), 0)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					c.lease(fmt.Sprintf("w%d", n))
				}
			}
		})
	}
	for range 5 {
		time.Sleep(30 * time.Millisecond)
		c.call(200, "POST", "/queue/pause", nil, nil)
		time.Sleep(30 * time.Millisecond)
		c.call(200, "POST", "/queue/resume", nil, nil)
	}
	close(done)
	wg.Wait()
	var inside, leases int
	err := c.pool.QueryRow(t.Context(), `select count(*), count(*) filter (where (select type from events q where q.stream = 'queue/main' and q.position < e.position
		order by position desc limit 1) = 'queue.paused.v1') from events e where type = 'build.leased.v1'`).Scan(&leases, &inside)
	if err != nil || inside > 0 || leases == 0 {
		t.Errorf("%d of %d leases were made while the queue was paused, %v", inside, leases, err)
	}
}

func (c *control) bulk(want int, r api.BulkRequest, headers ...string) (b api.Bulk) {
	c.Helper()
	var begun api.BulkAnswer
	h := c.call(want, "POST", "/builds/bulk", r, &begun, headers...)
	eventually(c.T, 20*time.Second, func() error {
		c.call(200, "GET", h.Get("Location"), nil, &b)
		if b.FinishedAt == nil {
			return fmt.Errorf("not finished: %+v", b)
		}
		return nil
	})
	if b.ID != begun.ID || b.Concerned != begun.Concerned || b.Pending != 0 {
		c.Errorf("%+v, begun as %+v", b, begun)
	}
	return b
}

func TestBulk(t *testing.T) { onEachBackend(t, testBulk) }

func testBulk(t *testing.T, c *control) {
	for i := range 6 {
		c.enqueue(fmt.Sprintf("bad%d", i), 0)
	}
	for range 6 {
		c.fail("w1")
	}
	for i := range 700 { // more than one part
		c.call(202, "POST", "/queue/enqueue", api.EnqueueRequest{
			Package: fmt.Sprintf("good%d", i), Version: "2.0", PythonTag: "cp312", PlatformTag: "linux_x86_64",
		}, nil, "Prefer", "respond-async")
	}
	eventually(t, 20*time.Second, func() error {
		var s api.QueueStats
		if c.call(200, "GET", "/queue/stats", nil, &s); s.Length != 700 {
			return fmt.Errorf("%d wait", s.Length)
		}
		return nil
	})

	var preview api.BulkPreview
	c.call(200, "POST", "/builds/bulk", api.BulkRequest{Action: "retry", Filter: api.BulkFilter{Class: "compiler"}, DryRun: true}, &preview)
	if preview.Concerned != 6 || len(preview.Sample) != 6 || preview.Sample[0] != id("bad0") {
		t.Errorf("%+v", preview)
	}
	if got := c.status("bad0").Status; got != "failed" {
		t.Errorf("a dry run made it %s", got)
	}
	c.call(200, "POST", "/builds/bulk", api.BulkRequest{Action: "cancel", Filter: api.BulkFilter{PythonTag: "cp312"}, DryRun: true}, &preview)
	if preview.Concerned != 700 || len(preview.Sample) != 20 {
		t.Errorf("%d concerned, %d shown", preview.Concerned, len(preview.Sample))
	}

	nine := 9
	retried := c.bulk(201, api.BulkRequest{Action: "retry", Filter: api.BulkFilter{Status: []api.BuildStatus{"failed"}}, Priority: &nine}, "Idempotency-Key", "k")
	if retried.Applied != 6 || retried.Refused != 0 || c.status("bad3").Status != "queued" || c.status("bad3").Priority != 9 {
		t.Errorf("%+v", retried)
	}
	// Nothing has failed any more; sent again under the same key, it is the same action.
	if again := c.bulk(201, api.BulkRequest{Action: "retry", Filter: api.BulkFilter{Status: []api.BuildStatus{"failed"}}, Priority: &nine}, "Idempotency-Key", "k"); again != retried && again.ID != retried.ID {
		t.Errorf("%+v", again)
	}
	if moved := c.bulk(201, api.BulkRequest{Action: "priority", Filter: api.BulkFilter{Version: "2"}, Priority: &nine}); moved.Applied != 700 {
		t.Errorf("%+v", moved)
	}
	if gone := c.bulk(201, api.BulkRequest{Action: "cancel", Filter: api.BulkFilter{PythonTag: "cp312"}, Reason: "enough"}); gone.Applied != 700 || gone.Reason != "enough" {
		t.Errorf("%+v", gone)
	}
	if none := c.bulk(201, api.BulkRequest{Action: "cancel", Filter: api.BulkFilter{PythonTag: "cp312"}}); none.Concerned != 0 {
		t.Errorf("%+v", none)
	}
	var s api.QueueStats
	if c.call(200, "GET", "/queue/stats", nil, &s); s.Length != 6 {
		t.Errorf("%d wait", s.Length)
	}

	c.call(422, "POST", "/builds/bulk", api.BulkRequest{Action: "priority", Filter: api.BulkFilter{Package: "a"}}, nil)
	c.call(400, "POST", "/builds/bulk", map[string]any{"action": "cancel", "filter": map[string]any{}}, nil)
	c.call(400, "POST", "/builds/bulk", map[string]any{"action": "delete", "filter": map[string]any{"package": "a"}}, nil)
	c.call(404, "GET", "/builds/bulk/00000000-0000-4000-8000-000000000000", nil, nil)
}
