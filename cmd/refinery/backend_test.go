package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

// backends are the transports that whole control planes are tried and measured on.
var backends = []struct {
	name string
	set  func(testing.TB, *controlSettings)
}{
	{"file", func(_ testing.TB, c *controlSettings) { c.QueueBackend = "file" }},
	{"redis", func(t testing.TB, c *controlSettings) { c.QueueBackend, c.RedisURL = "redis", testserver.Redis(t) }},
	// A broker for each: there is one topic of commands.
	{"kafka", func(t testing.TB, c *controlSettings) {
		c.QueueBackend, c.KafkaBrokers = "kafka", testserver.NewKafka(t).Addr()
	}},
}

// onEachBackend runs a test on a control plane of each transport.
func onEachBackend(t *testing.T, test func(*testing.T, *control)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			test(t, startControl(t, func(c *controlSettings) { b.set(t, c) }))
		})
	}
}

// Clearing is an event, so that it works whatever the transport holds; what is enqueued afterwards waits.
func TestClear(t *testing.T) { onEachBackend(t, testClear) }

func testClear(t *testing.T, c *control) {
	for i := range 20 {
		c.enqueue(fmt.Sprintf("a%d", i), i)
	}
	leased, attempt := c.lease("w1")
	if leased != "a19" || attempt != 1 {
		t.Errorf("leased %s, attempt %d", leased, attempt)
	}
	c.call(200, "POST", path("a3", "cancel"), nil, nil)
	var cleared api.ClearAnswer
	c.call(200, "POST", "/queue/clear", api.ClearRequest{Reason: "enough"}, &cleared)
	if cleared.Cleared != 18 {
		t.Errorf("%d were cleared of 18", cleared.Cleared)
	}
	var s api.QueueStats
	eventually(t, 20*time.Second, func() error {
		if c.call(200, "GET", "/queue/stats", nil, &s); s.Length != 0 {
			return fmt.Errorf("%d wait", s.Length)
		}
		return nil
	})
	if name, _ := c.lease("w2"); name != "" {
		t.Errorf("leased %s of a cleared queue", name)
	}
	eventually(t, 20*time.Second, func() error { // another read model than the queue's
		if got := c.status("a5").Status; got != "cancelled" {
			return fmt.Errorf("a build that was cleared is %s", got)
		}
		return nil
	})
	if got := c.status("a19").Status; got != "leased" {
		t.Errorf("a build that a worker has is %s", got)
	}
	c.enqueue("later", 0)
	if name, _ := c.lease("w2"); name != "later" {
		t.Errorf("leased %q", name)
	}
}

// While the bus is gone, for a minute, writes are answered 503 with a problem that says so, /ready names the part, and reads go on. When it is back, so
// is everything, without a restart, and no command was lost or handled twice.
func TestBusGone(t *testing.T) {
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := testserver.NewRedis(t)
		testBusGone(t, server, func(c *controlSettings) { c.QueueBackend, c.RedisURL = "redis", "redis://"+server.Addr() })
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		server := testserver.NewKafka(t)
		testBusGone(t, server, func(c *controlSettings) { c.QueueBackend, c.KafkaBrokers = "kafka", server.Addr() })
	})
}

func testBusGone(t *testing.T, server *testserver.Server, set func(*controlSettings)) {
	c := startControl(t, set)
	c.enqueue("before", 0)
	const clients = 8
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	accepted := make([][]string, clients)
	refused := make([]int, clients)
	for n := range clients {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("c%d-%d", n, i)
				status, problem, err := post(c.url(), name)
				switch {
				case err != nil:
					t.Error(err)
					return
				case status == http.StatusCreated, status == http.StatusAccepted:
					accepted[n] = append(accepted[n], name)
				case status == http.StatusServiceUnavailable && strings.Contains(problem, "bus"):
					refused[n]++
					time.Sleep(10 * time.Millisecond)
				default:
					t.Errorf("%d %s", status, problem)
					return
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	server.Kill(t)
	eventually(t, 10*time.Second, func() error {
		if status, body, err := get(c.url() + "/ready"); status != http.StatusServiceUnavailable || !strings.Contains(string(body), `"name":"bus"`) {
			return fmt.Errorf("/ready: %d %s %w", status, body, err)
		}
		return nil
	})
	c.call(200, "GET", strings.TrimSuffix(path("before", ""), "/"), nil, nil)
	time.Sleep(time.Minute)
	server.Start(t)
	eventually(t, 30*time.Second, func() error {
		if status, body, err := get(c.url() + "/ready"); status != http.StatusOK {
			return fmt.Errorf("/ready: %d %s %w", status, body, err)
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond)
	cancel()
	wg.Wait()
	all, no := 0, 0
	for n := range clients {
		no += refused[n]
		for _, name := range accepted[n] {
			all++
			eventually(t, 20*time.Second, func() error {
				if status, body, err := get(c.url() + strings.TrimSuffix(path(name, ""), "/")); status != http.StatusOK {
					return fmt.Errorf("%s was accepted: %d %s %w", name, status, body, err)
				}
				return nil
			})
		}
	}
	if all == 0 || no == 0 {
		t.Errorf("%d accepted, %d refused: this tests nothing", all, no)
	}
	var twice int
	if err := c.pool.QueryRow(t.Context(), `select count(*) from (select 1 from events where type = 'build.queued.v1' group by stream having count(*) > 1) d`).Scan(&twice); err != nil || twice > 0 {
		t.Errorf("%d were applied twice, %v", twice, err)
	}
	t.Logf("%d accepted, %d refused", all, no)
}

// The program is killed while commands come in, and started again: each that was accepted has been applied, once.
func TestKillOnRedis(t *testing.T) {
	p := newProgram(t)
	url := testserver.Redis(t)
	p.env = []string{"QUEUE_BACKEND=redis", "REDIS_URL=" + url}
	var serve *exec.Cmd
	start := func() {
		serve = p.command("serve")
		if err := serve.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, p.ready)
	}
	defer func() { _ = serve.Process.Kill() }()
	const clients = 8
	var accepted [clients][]string
	for round := range 2 {
		start()
		var wg sync.WaitGroup
		for n := range clients {
			wg.Go(func() {
				for i := 0; ; i++ {
					name := fmt.Sprintf("r%d-c%d-%d", round, n, i)
					status, problem, err := post("http://"+p.api, name)
					if err != nil {
						return // killed
					}
					if status != http.StatusCreated && status != http.StatusAccepted {
						t.Errorf("%d %s", status, problem)
						return
					}
					accepted[n] = append(accepted[n], name)
				}
			})
		}
		time.Sleep(time.Second)
		if err := serve.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = serve.Wait()
		wg.Wait()
	}
	start()
	all := 0
	for _, names := range accepted {
		for _, name := range names {
			all++
			eventually(t, 30*time.Second, func() error {
				if status, body, err := get("http://" + p.api + strings.TrimSuffix(path(name, ""), "/")); status != http.StatusOK {
					return fmt.Errorf("%s was accepted: %d %s %w", name, status, body, err)
				}
				return nil
			})
		}
	}
	if all < 2*clients {
		t.Errorf("only %d were accepted", all)
	}
	t.Logf("%d accepted", all)
	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("serve ended with %v", err)
	}
	p.consistent()
}

// post enqueues a build and returns the status, and the problem's text where there is one.
func post(url, name string) (status int, problem string, err error) {
	r, err := http.NewRequest("POST", url+"/queue/enqueue", strings.NewReader(enqueueBody(name)))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", uuid.NewString())
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	var p api.Problem
	err = json.NewDecoder(answer.Body).Decode(&p)
	if answer.StatusCode < 300 {
		err = nil
	}
	return answer.StatusCode, p.Detail, err
}
