package main

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// Each role in a process of its own: together they do what one does, each says what it does not do, and nothing that one knows is missing
// in another.
func TestRoles(t *testing.T) {
	dir, dsn := t.TempDir(), pgtest.DSN(t)
	with := func(roles ...string) *control {
		return startControlIn(t, dir, dsn, func(c *controlSettings) { c.Roles, c.MaxAttempts = roles, 3 })
	}
	write, read := with(roleWriteAPI), with(roleReadAPI)
	var p api.Problem
	write.call(404, "GET", "/queue", nil, &p)
	if !strings.Contains(p.Detail, "readapi") {
		t.Errorf("%+v", p)
	}
	read.call(404, "POST", "/queue/pause", nil, &p)
	if !strings.Contains(p.Detail, "writeapi") {
		t.Errorf("%+v", p)
	}
	// Nobody handles it yet.
	header := write.call(202, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "early", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}, nil)
	with(roleHandlers)
	with(roleProjector)
	policies, relay := with(rolePolicies), with(roleRelay)
	eventually(t, 20*time.Second, func() error {
		var command api.Command
		if write.call(200, "GET", header.Get("Location"), nil, &command); command.Status != api.CommandStatusApplied {
			return fmt.Errorf("%+v", command)
		}
		return nil
	})
	for _, c := range []*control{write, read, policies, relay} {
		eventually(t, 20*time.Second, func() error {
			if status, parts := c.parts(t); status != 200 {
				return fmt.Errorf("%v", parts)
			}
			return nil
		})
	}
	events := followEvents(t, read, 0)

	// What is written here is read there, at once and again and again: answers are kept and each write makes them old.
	const rounds = 30
	begin := time.Now()
	for i := range rounds {
		name := fmt.Sprint("p", i)
		header := write.call(201, "POST", "/queue/enqueue", api.EnqueueRequest{Package: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}, nil)
		var list api.QueueList
		read.call(200, "GET", "/queue?limit=500&min_position="+header.Get("Refinery-Position"), nil, &list)
		if len(list.Items) != i+2 {
			t.Fatalf("after %d there are %d", i+2, len(list.Items))
		}
	}
	took := time.Since(begin)
	t.Logf("%v for a write and a read", took/rounds)
	if took > rounds*100*time.Millisecond { // the outcome and the read models are in other processes: to poll for both takes longer
		t.Errorf("%d writes and reads took %v", rounds, took)
	}

	// A worker of one process, and what others know of it.
	name, attempt := write.lease("w")
	second := with(roleWriteAPI)
	second.call(201, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "of-the-workers-tags", Version: "1.0"}, nil)
	var beat api.HeartbeatAnswer
	job := api.JobRef{Kind: api.JobKindBuild, Build: id(name), Attempt: attempt}
	second.call(200, "POST", "/worker/heartbeat", api.HeartbeatRequest{Worker: "w", Jobs: []api.JobRef{job}}, &beat)
	if beat.Jobs[0].Action != api.JobActionContinue {
		t.Errorf("%+v", beat)
	}
	second.call(200, "POST", path(name, "cancel"), nil, nil)
	write.call(200, "POST", "/worker/heartbeat", api.HeartbeatRequest{Worker: "w", Jobs: []api.JobRef{job}}, &beat)
	if beat.Jobs[0].Action != api.JobActionCancel {
		t.Errorf("%+v", beat)
	}
	// One that waits in one process is given what another process enqueues, as soon as it is.
	write.call(200, "POST", "/queue/clear", nil, nil)
	got := make(chan string, 1)
	go func() {
		name, _ := write.leaseWithin("w2", 20)
		got <- name
	}()
	time.Sleep(500 * time.Millisecond)
	begin = time.Now()
	second.enqueue("for-who-waits", 0)
	if name := <-got; name != "for-who-waits" || time.Since(begin) > time.Second {
		t.Errorf("leased %q after %v", name, time.Since(begin))
	}
	// A failure is judged by the process of the policies, with a hint that was written elsewhere, and tried again.
	second.enqueue("failing", 0)
	if name := write.fail("w"); name != "failing" {
		t.Fatalf("leased %q", name)
	}
	eventually(t, 10*time.Second, func() error {
		var b api.Build
		if read.call(200, "GET", strings.TrimSuffix(path("failing", ""), "/"), nil, &b); len(b.Attempts) != 1 || b.Status != "failed" {
			return fmt.Errorf("%+v", b)
		}
		return nil
	})
	var stats api.QueueStats
	header = read.call(200, "GET", "/queue/stats", nil, &stats)
	last, err := strconv.ParseInt(header.Get("Refinery-Position"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for want := int64(1); want <= last; want++ {
		select {
		case at := <-events:
			if at != want {
				t.Fatalf("event %d came after %d", at, want-1)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("event %d of %d does not come", want, last)
		}
	}
}

// followEvents follows /events from a position on.
func followEvents(t *testing.T, c *control, after int64) <-chan int64 {
	t.Helper()
	answer, err := http.Get(fmt.Sprint(c.url(), "/events?after=", after))
	if err != nil || answer.StatusCode != 200 {
		t.Fatal(answer, err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	events := make(chan int64, 10_000)
	go func() {
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, 1<<20)
		var id int64
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id, _ = strconv.ParseInt(text, 10, 64)
			} else if strings.HasPrefix(lines.Text(), "data: ") {
				events <- id
			}
		}
	}()
	return events
}

// A session begins in one process, holds in another, and its end there is its end here.
func TestSessionInAnotherProcess(t *testing.T) {
	dir, dsn, token := t.TempDir(), pgtest.DSN(t), access.NewToken()
	secret := func(c *controlSettings) { c.WorkerToken, c.ReadToken = token, "read-"+token }
	one, two := startControlIn(t, dir, dsn, secret), startControlIn(t, dir, dsn, secret)
	header := one.call(201, "POST", "/session", map[string]string{"token": token}, nil)
	cookie, _, _ := strings.Cut(header.Get("Set-Cookie"), ";")
	two.call(200, "GET", "/queue", nil, nil, "Cookie", cookie)
	two.call(200, "POST", "/queue/pause", nil, nil, "Cookie", cookie)
	one.call(200, "GET", "/queue", nil, nil, "Cookie", cookie)
	two.call(204, "DELETE", "/session", nil, nil, "Cookie", cookie)
	two.call(401, "GET", "/queue", nil, nil, "Cookie", cookie)
	eventually(t, 2*time.Second, func() error {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/queue", nil)
		r.Header.Set("Cookie", cookie)
		if one.checked.ServeHTTP(w, r); w.Code != 401 {
			return fmt.Errorf("%d", w.Code)
		}
		return nil
	})
}

// Of two processes with the policies, one calls the webhook, however long that takes.
func TestWebhookIsCalledOnce(t *testing.T) {
	var calls atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		time.Sleep(2500 * time.Millisecond) // longer than two looks for what is due
	}))
	t.Cleanup(hook.Close)
	dir, dsn := t.TempDir(), pgtest.DSN(t)
	url := func(c *controlSettings) { c.WorkerWebhookURL = hook.URL }
	one, two := startControlIn(t, dir, dsn, url), startControlIn(t, dir, dsn, url)
	for i, c := range []*control{one, two} {
		c.call(200, "POST", "/worker/trigger", nil, nil)
		if n := calls.Load(); n != int64(i)+1 {
			t.Errorf("%d triggers, %d calls", i+1, n)
		}
	}
}

// Workers of two processes that lease at once from one queue get every build, and none twice.
func TestLeaseFromTwoProcesses(t *testing.T) {
	const builds = 400
	dir, dsn := t.TempDir(), pgtest.DSN(t)
	one, two := startControlIn(t, dir, dsn), startControlIn(t, dir, dsn)
	queueBuilds(t, one.plane, builds)
	all := map[string]int{}
	for end := time.Now().Add(time.Minute); len(all) < builds && time.Now().Before(end); {
		leased, _ := leaseAll(t, 32, builds, one.plane, two.plane)
		for name, n := range leased {
			all[name] += n
		}
	}
	for name, n := range all {
		if n != 1 {
			t.Errorf("%s was leased %d times", name, n)
		}
	}
	if len(all) != builds {
		t.Errorf("%d of %d builds were leased", len(all), builds)
	}
	var refused int
	if err := one.pool.QueryRow(t.Context(), `select count(*) from commands where name = 'build.lease' and status = 'refused'`).Scan(&refused); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d leases, %d refused since the other process was quicker", len(all), refused)
}

// A process that is started again after it was killed takes up what it did at once: it need not wait for its own leases. One beside it has
// a name of its own.
func TestNames(t *testing.T) {
	p := newProgram(t)
	names := func() int {
		entries, err := os.ReadDir(filepath.Join(p.dir, "processes"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	enqueue := func(api, name string) {
		t.Helper()
		answer, err := http.Post("http://"+api+"/queue/enqueue", "application/json", strings.NewReader(enqueueBody(name)))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != 201 {
			t.Errorf("%s: %d", name, answer.StatusCode)
		}
	}
	first := p.command("serve")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer first.Process.Kill()
	eventually(t, 30*time.Second, p.ready)
	enqueue(p.api, "one")
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	begin := time.Now()
	p.serve()
	enqueue(p.api, "two") // waits for the read models
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("it took %v, so it waited for its own lease", took)
	}
	if n := names(); n != 1 {
		t.Errorf("%d names of one process", n)
	}
	other := *p
	other.api, other.ui = freeAddr(t), freeAddr(t)
	other.serve()
	enqueue(other.api, "three")
	if n := names(); n != 2 {
		t.Errorf("%d names of two processes", n)
	}
}
