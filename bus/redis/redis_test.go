package redis

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/bus/delivery"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

// Settings under which the server may lose what it has accepted are named, and others are not.
func TestWarnings(t *testing.T) {
	server := testserver.NewRedis(t)
	url := "redis://" + server.Addr()
	c := client(t, url)
	for _, step := range []struct{ setting, value, want string }{
		{"appendfsync", "always", ""},
		{"appendfsync", "everysec", "set appendfsync always"},
		{"appendonly", "no", "in memory only"},
		{"appendonly", "yes", "set appendfsync always"},
		{"appendfsync", "always", ""},
		{"maxmemory-policy", "allkeys-lru", ""}, // without a limit it drops nothing
		{"maxmemory", "100mb", "set maxmemory-policy noeviction"},
	} {
		if err := c.ConfigSet(t.Context(), step.setting, step.value).Err(); err != nil {
			t.Fatal(err)
		}
		log := &bustest.Log{}
		openLogging(t, url, log, delivery.DefaultLimits())
		if s := log.String(); step.want == "" && s != "" || !strings.Contains(s, step.want) {
			t.Errorf("with %s %s the log says %q, want %q", step.setting, step.value, s, step.want)
		}
	}
}

func TestPassword(t *testing.T) {
	server := testserver.NewRedis(t, "--requirepass", "hunter2")
	openQuiet(t, "redis://:hunter2@"+server.Addr()+"/3")
	for _, url := range []string{"redis://" + server.Addr(), "redis://:hunter3@" + server.Addr(), "redis://me:hunter3@" + server.Addr()} {
		_, err := Open(t.Context(), url, "", bustest.Quiet(t).Logger())
		if fault.CodeOf(err) != fault.Unavailable || strings.Contains(err.Error(), "hunter") {
			t.Errorf("a wrong password: %v", err)
		}
	}
}

// Nothing that a group has not passed is removed, and everything that all have passed is.
func TestTrimming(t *testing.T) {
	url := testserver.Redis(t)
	b, c := openQuiet(t, url), client(t, url)
	stored := func() (n int64) {
		for _, stream := range streamNames("t") {
			one, err := c.XLen(t.Context(), stream).Result()
			if err != nil {
				t.Fatal(err)
			}
			n += one
		}
		return n
	}
	_, away := bustest.Subscribe(t, b, "away", "t")
	if err := away.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		bustest.Publish(t, b, "t", bustest.Keyed(strconv.Itoa(i%50), strconv.Itoa(i)))
	}
	ch, _ := bustest.Subscribe(t, b, "fast", "t")
	for range 1000 {
		bustest.Receive(t, ch).Ack()
	}
	time.Sleep(3 * storeInterval)
	if n := stored(); n != 1000 {
		t.Errorf("%d of 1000 are left, though a group has seen none", n)
	}
	ch, _ = bustest.Subscribe(t, b, "away", "t")
	held := bustest.Receive(t, ch)
	for others := 0; others < 1000-20; others++ { // all of other keys; twenty are of its own
		bustest.Receive(t, ch).Ack()
	}
	time.Sleep(3 * storeInterval)
	key := held.Metadata.Get(bus.KeyMetadata)
	if n, err := c.XLen(t.Context(), streamName("t", shardOf("t", key))).Result(); err != nil || n < 20 {
		t.Errorf("%d entries are left of the shard of a message that is held: %v", n, err)
	}
	if n := stored(); n > 500 {
		t.Errorf("%d entries are left of the whole topic", n)
	}
	held.Ack()
	for range 20 - 1 {
		bustest.Receive(t, ch).Ack()
	}
	bustest.Eventually(t, "all removed", func() bool { return stored() == 0 })
}

// Topics that only tell what the event log knows anyway do not grow while nobody reads them; others keep everything.
func TestNoticesThatNobodyHearsDoNotGrow(t *testing.T) {
	url := testserver.Redis(t)
	b, c := openQuiet(t, url), client(t, url)
	payload := strings.Repeat("x", 1<<20)
	for i := range 60 {
		for _, topic := range []string{bus.TopicPoison, "other"} {
			bustest.Publish(t, b, topic, bus.NewMessage(strconv.Itoa(i), "k", []byte(payload)))
		}
	}
	memory := func(topic string) (n int64) {
		for _, stream := range streamNames(topic) {
			one, err := c.MemoryUsage(t.Context(), stream).Result()
			if err != nil && err != goredis.Nil {
				t.Fatal(err)
			}
			n += one
		}
		return n
	}
	if n := memory(bus.TopicPoison); n > 2*16<<20 || n == 0 {
		t.Errorf("%d bytes of the poison topic are left", n)
	}
	if n := memory("other"); n < 60<<20 {
		t.Errorf("%d bytes of another topic are left of 60 MiB", n)
	}
}

// Handlers that take longer than any lease keep their messages, and their keys, while their process lives; another process that comes
// meanwhile gets no shard of them.
func TestSlowHandler(t *testing.T) {
	t.Parallel()
	url := testserver.Redis(t)
	first, second := openQuiet(t, url), openQuiet(t, url)
	keys := map[int]string{} // one of each shard
	for i := 0; len(keys) < shards("t"); i++ {
		keys[shardOf("t", strconv.Itoa(i))] = strconv.Itoa(i)
	}
	for _, key := range keys {
		bustest.Publish(t, first, "t", bustest.Keyed(key, "1"), bustest.Keyed(key, "2"))
	}
	ch1, _ := bustest.Subscribe(t, first, "g", "t")
	var held []*message.Message
	for range keys {
		held = append(held, bustest.Receive(t, ch1))
	}
	ch2, _ := bustest.Subscribe(t, second, "g", "t")
	select {
	case <-time.After(leaseTime + 2*time.Second):
	case again := <-ch1:
		t.Errorf("%s was delivered as well", again.UUID)
	case again := <-ch2:
		t.Errorf("%s was delivered elsewhere", again.UUID)
	}
	for _, m := range held {
		if m.Context().Err() != nil || string(m.Payload) != "1" {
			t.Errorf("the context of the handler of %s has ended", m.UUID)
		}
		m.Ack()
	}
	for range keys {
		select {
		case m := <-ch1:
			held = append(held, m)
		case m := <-ch2:
			held = append(held, m)
		case <-time.After(bustest.Patience):
			t.Fatal("no message")
		}
		m := held[len(held)-1]
		if string(m.Payload) != "2" {
			t.Errorf("received %s", m.UUID)
		}
		m.Ack()
	}
}

// Who has lost a shard works no longer on its messages, and what it acknowledges has no effect.
func TestLostShard(t *testing.T) {
	url := testserver.Redis(t)
	log := &bustest.Log{}
	b, c := openLogging(t, url, log, delivery.DefaultLimits()), client(t, url)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"), bustest.Keyed("k", "2"))
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	m := bustest.Receive(t, ch)
	shard := shardOf("t", "k")
	far := goredis.Z{Score: float64(time.Now().Add(time.Hour).UnixMilli()), Member: "other"}
	if err := c.ZAdd(t.Context(), membersKey("t", "g"), far).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.HSet(t.Context(), leasesKey("t", "g"), shard, "other").Err(); err != nil {
		t.Fatal(err)
	}
	m.Ack() // before this process knows
	select {
	case m = <-ch:
	case <-time.After(storeInterval): // it knows already
	}
	select {
	case <-m.Context().Done():
	case <-time.After(bustest.Patience):
		t.Fatal("the context of a message outlives the lease")
	}
	m.Ack()
	bustest.ExpectNone(t, ch, 2*storeInterval)
	if log.Count("lost") == 0 {
		t.Error("nothing was logged")
	}
	// The other one goes away: the message is still there.
	if err := c.ZRem(t.Context(), membersKey("t", "g"), "other").Err(); err != nil {
		t.Fatal(err)
	}
	bustest.Expect(t, ch, "1", "2")
}

// A server that does not answer for longer than the leases are trusted: the work on messages ends before another can have them, and they
// come again.
func TestServerStalls(t *testing.T) {
	t.Parallel()
	server := testserver.NewRedis(t)
	url := "redis://" + server.Addr()
	log := &bustest.Log{}
	b, c := openLogging(t, url, log, delivery.DefaultLimits()), client(t, url)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	m := bustest.Receive(t, ch)
	begin := time.Now()
	if err := c.ClientPause(t.Context(), leaseTime).Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Context().Done():
	case <-time.After(bustest.Patience):
		t.Fatal("the context of a message outlives the lease")
	}
	if d := time.Since(begin); d > leaseTime-time.Second {
		t.Errorf("the work ended after %v", d)
	}
	m.Ack()
	if err := b.Publish("t", bustest.Keyed("k", "2")); err == nil && time.Since(begin) < leaseTime {
		t.Error("Publish returned nil while the server answers nobody")
	}
	if d := time.Since(begin); d > leaseTime+2*callTime {
		t.Errorf("Publish took until %v", d)
	}
	bustest.Expect(t, ch, "1")
}

// A publish alone is one round trip; those of many share theirs.
func TestGroupCommit(t *testing.T) {
	b := openQuiet(t, testserver.Redis(t))
	bustest.Publish(t, b, "t", bustest.Keyed("k", "0"))
	trips := &tripCounter{}
	b.client.AddHook(trips)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"), bustest.Keyed("l", "2"))
	if n := trips.Swap(0); n != 1 {
		t.Errorf("a publish of two messages took %d round trips", n)
	}
	const publishers, each = 64, 50
	var wg sync.WaitGroup
	for range publishers {
		wg.Go(func() {
			for range each {
				bustest.Publish(t, b, "t", bustest.Keyed("k", "x"))
			}
		})
	}
	wg.Wait()
	if n := trips.Load(); n > publishers*each/5 {
		t.Errorf("%d publishes took %d round trips", publishers*each, n)
	}
}

type tripCounter struct{ atomic.Int64 }

func (c *tripCounter) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (c *tripCounter) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		c.Add(1)
		return next(ctx, cmd)
	}
}

func (c *tripCounter) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		c.Add(1)
		return next(ctx, cmds)
	}
}

// A server whose memory is full says so to who publishes and to Check, loses nothing, and goes on when there is room.
func TestFull(t *testing.T) {
	server := testserver.NewRedis(t)
	url := "redis://" + server.Addr()
	b, c := openQuiet(t, url), client(t, url)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	limit := func(memory string) {
		if err := c.ConfigSet(t.Context(), "maxmemory", memory).Err(); err != nil {
			t.Fatal(err)
		}
	}
	limit("100kb")
	if err := b.Publish("t", bustest.Keyed("k", "2")); err == nil || !strings.Contains(err.Error(), "maxmemory") {
		t.Errorf("Publish to a full server: %v", err)
	}
	if err := b.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "maxmemory") {
		t.Errorf("Check of a full server: %v", err)
	}
	limit("0")
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	bustest.Publish(t, b, "t", bustest.Keyed("k", "3"))
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Expect(t, ch, "1", "3")
}

// A server that comes back empty is used like a new one.
func TestEmptied(t *testing.T) {
	url := testserver.Redis(t)
	log := &bustest.Log{}
	b, c := openLogging(t, url, log, delivery.DefaultLimits()), client(t, url)
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	bustest.Expect(t, ch, "1")
	if err := c.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		bustest.Publish(t, b, "t", bustest.Keyed(strconv.Itoa(i), strconv.Itoa(i)))
	}
	got := map[string]bool{}
	for len(got) < 200 {
		m := bustest.Receive(t, ch)
		got[string(m.Payload)] = true
		m.Ack()
	}
}

// The entries are watermill-redisstream's.
func TestEntriesOfRedisstream(t *testing.T) {
	url := testserver.Redis(t)
	b, c := openQuiet(t, url), client(t, url)
	p, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: c}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	bustest.Publish(t, p, streamName("t", shardOf("t", "k")), bustest.Keyed("k", "1"))
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Expect(t, ch, "1")
}

// What is read ahead is bounded by bytes, and the whole of a large backlog comes.
func TestReadAheadIsBounded(t *testing.T) {
	url := testserver.Redis(t)
	limits := delivery.DefaultLimits()
	limits.Bytes = 4 << 20
	b := openLogging(t, url, bustest.Quiet(t), limits)
	const n = 60
	for i := range n {
		bustest.Publish(t, b, "t", bus.NewMessage(strconv.Itoa(i), strconv.Itoa(i), make([]byte, 1<<20)))
	}
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	var held []*message.Message
	for range 4 {
		held = append(held, bustest.Receive(t, ch))
	}
	time.Sleep(3 * blockTime)
	b.mu.Lock()
	unacked := b.groups[groupName{"t", "g"}].shown.Load().unacked
	b.mu.Unlock()
	if unacked > 4+firstRead {
		t.Errorf("%d messages of a megabyte were read ahead", unacked)
	}
	for _, m := range held {
		m.Ack()
	}
	for range n - len(held) {
		bustest.Receive(t, ch).Ack()
	}
}

func TestReplica(t *testing.T) {
	master := testserver.NewRedis(t)
	host, port, err := net.SplitHostPort(master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	replica := testserver.NewRedis(t, "--replicaof", fmt.Sprint(host, " ", port))
	if _, err := Open(t.Context(), "redis://"+replica.Addr(), "", bustest.Quiet(t).Logger()); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a replica: %v", err)
	}
}
