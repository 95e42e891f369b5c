package bustest

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/wheelrefinery/refinery/bus"
)

// Transport is what the suite knows of one.
type Transport struct {
	// Open connects to address, as a process of its own would, which has the name owner, "" for none. It may be called in another process;
	// see [Main].
	Open    func(address, owner string, logger *slog.Logger) (bus.Bus, error)
	Address string
	// Kill ends the server as a crash does, and Start starts it again on what it had stored. Nil: there is no server.
	Kill, Start func(t testing.TB)
	// Foreign puts something onto a topic that no bus has written. Nil: nobody else can write.
	Foreign func(t testing.TB, topic string)
	// Takeover is how long what a killed process held may take to reach another one.
	Takeover time.Duration
	// Shards says that keys share shards, so that one which is stuck stops those of its shard.
	Shards bool
}

// Run runs the suite: what package bus promises and watermill's universal tests leave out. Topics and groups are its own, so that one
// server serves many tests.
func Run(t *testing.T, tr Transport) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Transport)
		need bool
	}{
		{"Close", testClose, true},
		{"NamesAndLimits", testNamesAndLimits, true},
		{"Groups", testGroups, true},
		{"AcksBeforeCloseCount", testAcksBeforeCloseCount, true},
		{"CancelledContext", testCancelledContext, true},
		{"NackBacksOff", testNackBacksOff, true},
		{"NeverAcks", testNeverAcks, true},
		{"Poison", testPoison, true},
		{"Stats", testStats, true},
		{"Foreign", testForeign, tr.Foreign != nil},
		{"Order", testOrder, true},
		{"Rebalance", testRebalance, true},
		{"Standby", testStandby, true},
		{"CrashBeforeAck", testCrashBeforeAck, true},
		{"Restart", testRestart, true},
		{"CrashOfPublisher", testCrashOfPublisher, true},
		{"ServerKilled", testServerKilled, tr.Kill != nil},
		{"ServerGone", testServerGone, tr.Kill != nil},
	} {
		if c.need {
			t.Run(c.name, func(t *testing.T) { c.run(t, tr) })
		}
	}
}

// open opens a bus that is closed with the test. What it logs is shown when the test fails.
func (tr Transport) open(t testing.TB) bus.Bus { return tr.openAs(t, "") }

func (tr Transport) openAs(t testing.TB, owner string) bus.Bus {
	t.Helper()
	log := &Log{}
	b, err := tr.Open(tr.Address, owner, log.Logger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close bus: %v", err)
		}
		if t.Failed() {
			t.Logf("the bus logged:\n%s", log)
		}
	})
	return b
}

func topic() string { return "t-" + watermill.NewShortUUID() }

func testClose(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	Publish(t, b, name, Keyed("k", "1"))
	ch, sub := Subscribe(t, b, "g", name)
	Expect(t, ch, "1")
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, open := <-ch; open {
		t.Error("channel is open after Close")
	}
	if err := b.Publish(name, Keyed("k", "2")); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Publish after Close: %v", err)
	}
	if _, err := b.Subscriber("g"); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Subscriber after Close: %v", err)
	}
	if _, err := sub.Subscribe(t.Context(), name); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Subscribe after Close: %v", err)
	}
	if _, err := b.Stats(); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Stats after Close: %v", err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Check after Close: %v", err)
	}
}

func testNamesAndLimits(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	for _, bad := range []string{"", ".", "..", ".a", "a/b", "../a", "a\x00", "a b", "é", "a\n", strings.Repeat("x", 201)} {
		if err := b.Publish(bad, Keyed("k", "1")); err == nil {
			t.Errorf("topic %q: no error", bad)
		}
		if _, err := b.Subscriber(bad); err == nil {
			t.Errorf("group %q: no error", bad)
		}
	}
	large := bus.NewMessage("1234", "k", make([]byte, bus.MaxMessageBytes-4-len(bus.KeyMetadata)-1))
	Publish(t, b, name, large)
	for what, m := range map[string]*message.Message{
		"payload":  message.NewMessage("12345", make([]byte, bus.MaxMessageBytes-4)),
		"metadata": {UUID: "1", Metadata: message.Metadata{"k": strings.Repeat("x", bus.MaxMessageBytes)}},
		"uuid":     message.NewMessage("\xff", nil),
		"key":      {UUID: "1", Metadata: message.Metadata{"\xff": ""}},
		"value":    {UUID: "1", Metadata: message.Metadata{"a": "\xff"}},
	} {
		// With a good message before: what a call refuses is refused whole.
		if err := b.Publish(name, Keyed("k", "good"), m); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	binary := bus.NewMessage("ü/\x00", "k", []byte{0, 0xff, 0xfe, '\n'})
	binary.Metadata.Set("empty", "")
	binary.Metadata.Set("line\nbreak", "Ω\x00")
	Publish(t, b, name, binary)
	Publish(t, b, name, message.NewMessage("", nil))
	ch, _ := Subscribe(t, b, "g", name)
	for range 3 {
		m := Receive(t, ch)
		want := map[string]*message.Message{"1234": large, "ü/\x00": binary, "": message.NewMessage("", nil)}[m.UUID]
		if want == nil || !m.Equals(want) {
			t.Errorf("message %q with %v changed on its way", m.UUID, m.Metadata)
		}
		m.Ack()
	}
	ExpectNone(t, ch, 20*time.Millisecond)
}

// Groups are independent, start at the oldest message that is stored, and go on where they were.
func testGroups(t *testing.T, tr Transport) {
	name := topic()
	Publish(t, tr.open(t), name, Keyed("k", "before"))
	for round := range 3 {
		b := tr.open(t)
		Publish(t, b, name, Keyed("k", strconv.Itoa(round)))
		for _, group := range []string{"a", "b"} {
			ch, _ := Subscribe(t, b, group, name)
			if round == 0 {
				Expect(t, ch, "before")
			}
			Expect(t, ch, strconv.Itoa(round))
			ExpectNone(t, ch, 10*time.Millisecond)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// An ack counts once Ack has returned, even if the subscriber is closed in the next moment.
func testAcksBeforeCloseCount(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	for round := range 3 {
		var ms []*message.Message
		for i := range 200 {
			ms = append(ms, Keyed(strconv.Itoa(i), strconv.Itoa(round)))
		}
		Publish(t, b, name, ms...)
		ch, sub := Subscribe(t, b, "g", name)
		for range ms {
			m := Receive(t, ch)
			if string(m.Payload) != strconv.Itoa(round) {
				t.Fatalf("round %d: %s was acknowledged in round %s", round, m.UUID, m.Payload)
			}
			m.Ack()
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testCancelledContext(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	s, err := b.Subscriber("g")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextOf(t)
	ch, err := s.Subscribe(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	Publish(t, b, name, Keyed("k", "1"))
	m := Receive(t, ch)
	if m.Context().Err() != nil {
		t.Error("message context has ended before the message")
	}
	cancel()
	Eventually(t, "channel closed", func() bool {
		select {
		case _, open := <-ch:
			return !open
		default:
			return false
		}
	})
	if m.Context().Err() == nil {
		t.Error("message context outlives the subscription")
	}
	m.Ack() // too late
	ch, err = s.Subscribe(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	m = Receive(t, ch)
	m.Ack()
	select {
	case <-m.Context().Done():
	case <-time.After(Patience):
		t.Error("message context outlives its ack")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A message that is nacked comes again as it was published, ever later, and stops no key of another shard.
func testNackBacksOff(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	ch, _ := Subscribe(t, b, "g", name)
	Publish(t, b, name, Keyed("bad", "first"), Keyed("bad", "second"))
	m := Receive(t, ch)
	start := time.Now()
	deliveries := 1
	for time.Since(start) < time.Second {
		if string(m.Payload) != "first" || m.Metadata.Get("mine") != "" {
			t.Fatalf("received %q with %v, want \"first\" as it was published", m.Payload, m.Metadata)
		}
		m.Metadata.Set("mine", "1") // must not stick
		m.Payload[0] = 'X'
		m.Nack()
		m = Receive(t, ch)
		deliveries++
	}
	// 10, 20, 40, … ms give eight; a hot loop would give thousands.
	if deliveries < 3 || deliveries > 20 {
		t.Errorf("%d deliveries in a second", deliveries)
	}
	m.Ack()
	Expect(t, ch, "second")
}

// A consumer that never acknowledges stops the keys of its shard at most, and what it holds goes to who comes after it.
func testNeverAcks(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	ch, sub := Subscribe(t, b, "g", name)
	Publish(t, b, name, Keyed("stuck", "stuck"))
	Receive(t, ch)
	const keys = 200
	for i := range keys {
		Publish(t, b, name, Keyed(strconv.Itoa(i), strconv.Itoa(i)))
	}
	want := keys
	if tr.Shards {
		want = keys * 3 / 4
	}
	got := map[string]bool{}
	for len(got) < want {
		m := Receive(t, ch)
		got[string(m.Payload)] = true
		m.Ack()
	}
	if got["stuck"] {
		t.Error("what nobody has acknowledged was delivered twice")
	}
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	ch, _ = Subscribe(t, b, "g", name)
	for !got["stuck"] || len(got) < keys+1 {
		m := Receive(t, ch)
		got[string(m.Payload)] = true
		m.Ack()
	}
}

// route runs a router for a topic until the test ends.
func route(t *testing.T, b bus.Bus, topic string, h bus.Handler) {
	t.Helper()
	r, err := bus.NewRouter(b, slog.New(slog.DiscardHandler), "g", func(*message.Message, error) error { return nil }, map[string]bus.Handler{topic: h})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := contextOf(t)
	go func() { done <- r.Run(ctx) }()
	<-r.Running()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(r.Close(), <-done); err != nil {
			t.Errorf("router: %v", err)
		}
	})
}

func testPoison(t *testing.T, tr Transport) {
	b, name := tr.open(t), topic()
	var fine atomic.Int64
	route(t, b, name, func(m *message.Message) error {
		if strings.HasPrefix(string(m.Payload), "bad") {
			return fmt.Errorf("decode: %w", bus.ErrPermanent)
		}
		fine.Add(1)
		return nil
	})
	bad := bus.NewMessage(name, "k", append([]byte("bad"), make([]byte, bus.MaxMessageBytes-200)...)) // must fit with its reason
	Publish(t, b, name, Keyed("k", "1"), bad, Keyed("k", "2"))
	m := poisoned(t, b, func(m *message.Message) bool { return m.UUID == name })
	if len(m.Payload) != len(bad.Payload) || m.Metadata.Get(bus.KeyMetadata) != "k" || m.Metadata.Get(middleware.PoisonedTopicKey) != name ||
		m.Metadata.Get(middleware.ReasonForPoisonedKey) != "decode: permanent failure" {
		t.Errorf("poison topic got %s with %v", m.UUID, m.Metadata)
	}
	Eventually(t, "others handled", func() bool { return fine.Load() == 2 })
}

// poisoned takes messages from the poison topic until one is it; tests share the topic.
func poisoned(t *testing.T, b bus.Bus, it func(*message.Message) bool) *message.Message {
	t.Helper()
	ch, sub := Subscribe(t, b, "watch-"+watermill.NewShortUUID(), bus.TopicPoison)
	defer sub.Close()
	for {
		m := Receive(t, ch)
		m.Ack()
		if it(m) {
			return m
		}
	}
}

// What no bus has written ends in the poison topic, once, is named in the log, and stops nothing.
func testForeign(t *testing.T, tr Transport) {
	name, log := topic(), &Log{}
	b, err := tr.Open(tr.Address, "", log.Logger())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	ch, sub := Subscribe(t, b, "g", name)
	Publish(t, b, name, Keyed("k", "1"))
	Expect(t, ch, "1")
	tr.Foreign(t, name)
	mine := func(m *message.Message) bool { return m.Metadata.Get(middleware.PoisonedTopicKey) == name }
	if m := poisoned(t, b, mine); m.UUID == "" || m.Metadata.Get(middleware.ReasonForPoisonedKey) == "" {
		t.Errorf("poison topic got %q with %v", m.UUID, m.Metadata)
	}
	for i := range 200 { // of every shard
		Publish(t, b, name, Keyed(strconv.Itoa(i), strconv.Itoa(i)))
	}
	for range 200 {
		Receive(t, ch).Ack()
	}
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	if n := log.Count("not a message"); n != 1 {
		t.Errorf("the log names it %d times: %s", n, log)
	}
	ch, _ = Subscribe(t, b, "g", name) // it does not come again
	ExpectNone(t, ch, 100*time.Millisecond)
	if n := log.Count("not a message"); n != 1 {
		t.Errorf("it came again: %s", log)
	}
}

// Stats follow what is published and acknowledged, for a group that this process runs, for one that is away, and for a topic without one.
func testStats(t *testing.T, tr Transport) {
	b, name, lonely := tr.open(t), topic(), topic()
	Publish(t, b, lonely, Keyed("k", "1"))
	if s := backlog(t, b, "", lonely); s.Bytes == 0 || s.Unacked != 0 {
		t.Errorf("a topic without a group: %+v", s)
	}
	ch, sub := Subscribe(t, b, "g", name)
	begin := time.Now().Add(-2 * time.Second) // of the server's clock
	Publish(t, b, name, Keyed("k", "1"), Keyed("k", "2"), Keyed("k", "3"))
	for i := range 3 {
		m := Receive(t, ch)
		Eventually(t, "unacknowledged", func() bool {
			s := backlog(t, b, "g", name)
			return s.Unacked > 0 && s.Unacked <= 3-i && s.Bytes > 0 && s.Oldest.After(begin)
		})
		m.Ack()
	}
	passed := func() bool {
		s := backlog(t, b, "g", name)
		return s.Unacked == 0 && s.Bytes == 0 && s.Oldest.IsZero()
	}
	Eventually(t, "all passed", passed)
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	Publish(t, b, name, Keyed("k", "4"))
	if s := backlog(t, b, "g", name); s.Bytes == 0 || s.Unacked != 0 {
		t.Errorf("a group that is away: %+v", s)
	}
}

// backlog is what a group has not passed of a topic, as Stats tells it.
func backlog(t testing.TB, b bus.Bus, group, topic string) bus.Stats {
	t.Helper()
	all, err := b.Stats()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s bus.Stats) bool { return s.Topic == topic && s.Group == group })
	if i < 0 {
		t.Fatalf("Stats know no group %q of %s: %v", group, topic, all)
	}
	return all[i]
}
