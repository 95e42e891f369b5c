package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

const (
	chaosPlanes    = 3
	chaosWorkers   = 4
	chaosClients   = 4
	chaosFollowers = 2
	chaosSettle    = 90 * time.Second // for everything that was accepted to be done, once nothing is broken any more
)

// TestChaos kills control-plane processes and cuts and delays their connections to Postgres and the bus, on each transport, while clients
// write and read, workers build and followers follow; then it lets everything come to rest and checks that nothing is lost, doubled or out
// of order. CHAOS_TIME is how long it makes trouble in all, CHAOS_SEED what it chooses by.
func TestChaos(t *testing.T) {
	total, seed := 20*time.Second, rand.Uint64()
	var err error
	if text := os.Getenv("CHAOS_TIME"); text != "" {
		if total, err = time.ParseDuration(text); err != nil || total > 10*time.Minute {
			t.Fatalf("CHAOS_TIME is %q: want at most 10m, such as 90s", text)
		}
	}
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal("CHAOS_SEED: ", err)
		}
	}
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			c := newChaos(t, b.name, b.set, seed)
			c.run(total / time.Duration(len(backends)))
		})
	}
}

// chaos is three control planes, each with proxies of its own before Postgres and the bus, and those who use them.
type chaos struct {
	t      *testing.T
	seed   uint64
	begin  time.Time
	dsn    string // not through a proxy
	planes []*chaosPlane
	calm   chan struct{} // closed when no more trouble is made: what is under way is brought to its end

	kills, cuts, delays, answers, retries, reads, leases, built atomic.Int64

	mu      sync.Mutex
	writes  []chaosWrite
	looks   []chaosLook
	holders map[string]string // worker by stream and attempt
}

// chaosPlane is a control-plane process that is started again whenever it ends.
type chaosPlane struct {
	*program
	env     []string
	proxies []*toxiproxy.Proxy

	mu      sync.Mutex
	running *exec.Cmd
	killed  bool
	stopped bool
}

func newChaos(t *testing.T, backend string, set func(testing.TB, *controlSettings), seed uint64) *chaos {
	t.Logf("CHAOS_SEED=%d", seed)
	c := &chaos{t: t, seed: seed, begin: time.Now(), dsn: pgtest.DSN(t), calm: make(chan struct{}), holders: map[string]string{}}
	shared := newProgram(t)
	var s controlSettings
	var kafka *testserver.Server
	proxies := make([]string, chaosPlanes) // before Kafka, whose broker tells clients where it is
	if backend == "kafka" {
		for i := range proxies {
			proxies[i] = freeAddr(t)
		}
		kafka = testserver.NewKafka(t, proxies...)
	} else {
		set(t, &s)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	for i := range chaosPlanes {
		p := &chaosPlane{program: &program{t: t, dir: shared.dir, api: freeAddr(t)}}
		proxied := func(listen, address string) string {
			proxy := toxiproxy.NewProxy(server, address, listen, address)
			if err := proxy.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Stop)
			p.proxies = append(p.proxies, proxy)
			return proxy.Listen
		}
		through := func(address string) string {
			if address == "" {
				return ""
			}
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			u.Host = proxied("127.0.0.1:0", u.Host)
			return u.String()
		}
		p.dsn = through(c.dsn)
		p.env = []string{"LOG_LEVEL=info", "QUEUE_BACKEND=" + backend, "REDIS_URL=" + through(s.RedisURL)}
		if kafka != nil {
			p.env = append(p.env, "KAFKA_BROKERS="+proxied(proxies[i], kafka.Behind(i)))
		}
		c.planes = append(c.planes, p)
	}
	return c
}

// rng gives each actor choices of its own.
func (c *chaos) rng(actor int) *rand.Rand { return rand.New(rand.NewPCG(c.seed, uint64(actor))) }

func (c *chaos) run(trouble time.Duration) {
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	var planes, users, following sync.WaitGroup
	for _, p := range c.planes {
		planes.Go(func() { p.keep(ctx) })
	}
	for _, p := range c.planes {
		eventually(c.t, 60*time.Second, p.ready)
	}
	actor := 0
	start := func(wg *sync.WaitGroup, n int, f func(ctx context.Context, n int, r *rand.Rand)) {
		for i := range n {
			actor++
			r := c.rng(actor)
			wg.Go(func() { f(ctx, i, r) })
		}
	}
	followers := make([]*chaosFollower, chaosFollowers)
	start(&following, chaosFollowers, func(ctx context.Context, n int, r *rand.Rand) {
		followers[n] = &chaosFollower{}
		followers[n].follow(ctx, c, r)
	})
	start(&users, chaosClients, c.client)
	start(&users, chaosWorkers, c.worker)
	c.trouble(trouble, c.rng(0))
	close(c.calm)
	for _, p := range c.planes {
		eventually(c.t, 60*time.Second, p.ready)
	}
	users.Wait()
	head := c.settle()
	eventually(c.t, 30*time.Second, func() error {
		for i, f := range followers {
			if at := f.at.Load(); at != head {
				return fmt.Errorf("follower %d is at %d of %d", i, at, head)
			}
		}
		return nil
	})
	cancel()
	following.Wait()
	for _, p := range c.planes {
		p.end()
	}
	planes.Wait()
	c.check(head)
	c.t.Logf("%v of trouble: %d kills, %d cuts, %d delays; %d writes answered, %d tries again, %d reads, %d leases, %d built, %d events, %d looks at versions",
		trouble, c.kills.Load(), c.cuts.Load(), c.delays.Load(), c.answers.Load(), c.retries.Load(), c.reads.Load(), c.leases.Load(), c.built.Load(),
		head, len(c.looks))
}

// trouble makes it for a while, and then none.
func (c *chaos) trouble(long time.Duration, r *rand.Rand) {
	pick := func() *chaosPlane { return c.planes[r.IntN(len(c.planes))] }
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least)))
	}
	var healing sync.WaitGroup
	defer healing.Wait()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(between(300*time.Millisecond, 2*time.Second)) {
		p := pick()
		proxy := p.proxies[r.IntN(len(p.proxies))]
		lasts := between(200*time.Millisecond, 3*time.Second)
		switch r.IntN(4) {
		case 0, 1:
			c.kills.Add(1)
			p.kill()
		case 2:
			c.cuts.Add(1)
			healing.Go(func() {
				proxy.Stop()
				time.Sleep(lasts)
				if err := proxy.Start(); err != nil && err != toxiproxy.ErrProxyAlreadyStarted {
					c.t.Error(err)
				}
			})
		case 3:
			c.delays.Add(1)
			toxic := fmt.Sprintf(`{"type":"latency","stream":"downstream","attributes":{"latency":%d,"jitter":%d}}`, 20+r.IntN(200), r.IntN(50))
			healing.Go(func() {
				if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
					return // it has one already
				}
				time.Sleep(lasts)
				proxy.Toxics.ResetToxics(context.Background())
			})
		}
	}
}

// keep runs the process until end, again whenever it has ended, as a supervisor does.
func (p *chaosPlane) keep(ctx context.Context) {
	for ctx.Err() == nil {
		cmd := p.command("serve")
		cmd.Env = append(append(cmd.Env, p.env...), "UI_ADDR=")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		p.mu.Lock()
		if p.stopped {
			p.mu.Unlock()
			return
		}
		p.running, p.killed = cmd, false
		err := cmd.Start()
		p.mu.Unlock()
		if err != nil {
			p.t.Error(err)
			return
		}
		begin := time.Now()
		err = cmd.Wait()
		p.mu.Lock()
		killed, stopped := p.killed, p.stopped
		p.mu.Unlock()
		switch {
		case stopped:
			return
		case !killed && time.Since(begin) > 20*time.Second: // at the start it may say that Postgres or the bus is not there
			p.t.Errorf("a process ended by itself: %v\n%s", err, &out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (p *chaosPlane) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != nil && p.running.Process != nil {
		p.killed = true
		_ = p.running.Process.Kill() // it may have ended
	}
}

// end stops the process in good order.
func (p *chaosPlane) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	if p.running != nil && p.running.Process != nil {
		_ = p.running.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(15*time.Second, func() { _ = p.running.Process.Kill() })
		p.t.Cleanup(func() { kill.Stop() })
	}
}

// over says that no more trouble is made.
func (c *chaos) over() bool {
	select {
	case <-c.calm:
		return true
	default:
		return false
	}
}

// now is the time since the beginning, in nanoseconds.
func (c *chaos) now() int64 { return int64(time.Since(c.begin)) }

// plane is the address of one of the processes.
func (c *chaos) plane(r *rand.Rand) string { return "http://" + c.planes[r.IntN(len(c.planes))].api }

var chaosHTTP = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
