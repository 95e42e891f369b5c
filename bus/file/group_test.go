package file

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
)

func TestNackBacksOff(t *testing.T) {
	b := open(t, t.TempDir())
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Publish(t, b, "t", bustest.Keyed("bad", "first"), bustest.Keyed("bad", "second"))
	start := time.Now()
	var times []time.Duration
	for i := range 200 { // another key goes on meanwhile
		bustest.Publish(t, b, "t", bustest.Keyed("good", strconv.Itoa(i)))
		for {
			m := bustest.Receive(t, ch)
			if m.Metadata.Get(bus.KeyMetadata) == "good" {
				m.Ack()
				break
			}
			if string(m.Payload) != "first" || m.Metadata.Get("mine") != "" {
				t.Fatalf("received %q with %v, want \"first\" as it was published", m.Payload, m.Metadata)
			}
			times = append(times, time.Since(start))
			m.Metadata.Set("mine", "1") // must not stick
			m.Payload[0] = 'X'
			m.Nack()
		}
		time.Sleep(2 * time.Millisecond)
	}
	// 10 + 20 + 40 + 80 + 160 ms: five or six deliveries in the 400 ms and more that this took.
	total := time.Since(start)
	want := 1
	for wait, sum := 10*time.Millisecond, 10*time.Millisecond; sum < total; want++ {
		wait *= 2
		sum += wait
	}
	if len(times) < 3 || len(times) > want {
		t.Errorf("%d deliveries in %v, want at most %d: %v", len(times), total, want, times)
	}
	bustest.Expect(t, ch, "first", "second")
}

func TestInFlightIsBounded(t *testing.T) {
	b := open(t, t.TempDir(), func(tn *tuning) { tn.InFlight, tn.Unacked = 50, 80 })
	var ms []*message.Message
	for i := range 200 {
		ms = append(ms, bustest.Keyed(strconv.Itoa(i), strconv.Itoa(i)))
	}
	bustest.Publish(t, b, "t", ms...)
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	var held []*message.Message
	for range 50 {
		held = append(held, bustest.Receive(t, ch))
	}
	bustest.ExpectNone(t, ch, 50*time.Millisecond)
	for n := 50; n < 200; n++ {
		held[0].Ack()
		held = append(held[1:], bustest.Receive(t, ch))
	}
	for _, m := range held {
		m.Ack()
	}
	bustest.ExpectNone(t, ch, 50*time.Millisecond)
}

// A message that is never acknowledged does not hold up other keys, even when they are many more than may be in flight.
func TestStuckMessage(t *testing.T) {
	b := open(t, t.TempDir(), func(tn *tuning) { tn.InFlight, tn.Unacked, tn.segmentSize = 10, 20, 4<<10 })
	ch, sub := bustest.Subscribe(t, b, "g", "t")
	bustest.Publish(t, b, "t", bustest.Keyed("stuck", "stuck"))
	bustest.Receive(t, ch)
	for i := range 500 {
		bustest.Publish(t, b, "t", bustest.Keyed(strconv.Itoa(i%7), strconv.Itoa(i)))
		bustest.Expect(t, ch, strconv.Itoa(i))
	}
	// The offset stays before it: everything since comes again to whoever is next, it first of its key.
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	ch, _ = bustest.Subscribe(t, b, "g", "t")
	bustest.Expect(t, ch, "stuck")
}

func TestReadAheadIsBoundedByBytes(t *testing.T) {
	b := open(t, t.TempDir(), func(tn *tuning) { tn.Bytes = 10 << 10 })
	payload := make([]byte, 3<<10)
	for i := range 20 {
		m := bustest.Keyed(strconv.Itoa(i), "")
		m.Payload = payload
		bustest.Publish(t, b, "t", m)
	}
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	var held []*message.Message
	for range 4 { // the one that crosses the bound is the last
		held = append(held, bustest.Receive(t, ch))
	}
	bustest.ExpectNone(t, ch, 50*time.Millisecond)
	for n := 4; n < 20; n++ {
		held[n-4].Ack()
		held = append(held, bustest.Receive(t, ch))
	}
}

// Two subscribers of a group share its messages; when one closes, the other gets at once what that one did not acknowledge.
func TestSubscribersShare(t *testing.T) {
	b := open(t, t.TempDir())
	ch1, sub1 := bustest.Subscribe(t, b, "g", "t")
	ch2, _ := bustest.Subscribe(t, b, "g", "t")
	const n = 20
	for i := range n {
		bustest.Publish(t, b, "t", bustest.Keyed(strconv.Itoa(i), strconv.Itoa(i)))
	}
	got := map[string]bool{}
	var mine []*message.Message
	for len(got) < n {
		select {
		case m := <-ch1:
			if got[string(m.Payload)] {
				t.Errorf("%s was delivered twice", m.Payload)
			}
			got[string(m.Payload)] = true
			mine = append(mine, m)
		case m := <-ch2:
			if got[string(m.Payload)] {
				t.Errorf("%s was delivered twice", m.Payload)
			}
			got[string(m.Payload)] = true
			m.Ack()
		case <-time.After(bustest.Patience):
			t.Fatalf("only %d messages came", len(got))
		}
	}
	if len(mine) == 0 || len(mine) == n {
		t.Fatalf("the first subscriber got %d of %d", len(mine), n)
	}
	closed := time.Now()
	if err := sub1.Close(); err != nil {
		t.Fatal(err)
	}
	for range mine {
		bustest.Receive(t, ch2).Ack()
	}
	if d := time.Since(closed); d > 200*time.Millisecond {
		t.Errorf("handed over after %v", d)
	}
	for _, m := range mine {
		m.Ack() // too late, and harmless
	}
	bustest.ExpectNone(t, ch2, 50*time.Millisecond)
}

// An offset that cannot be read costs a redelivery and a warning, not the messages.
func TestGarbledOffset(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	bustest.Publish(t, b, "t", bustest.Keyed("k", "1"))
	ch, _ := bustest.Subscribe(t, b, "g", "t")
	bustest.Expect(t, ch, "1")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/t/groups/g/offset", "12x")
	log := &bustest.Log{}
	ch, _ = bustest.Subscribe(t, openLogging(t, dir, log), "g", "t")
	bustest.Expect(t, ch, "1")
	if log.Count("oldest message") != 1 {
		t.Errorf("want one warning, got %q", log)
	}
}

// Across processes a message is found by polling, so it takes some milliseconds; within one it takes none.
func TestLatency(t *testing.T) {
	dir := t.TempDir()
	here, there := open(t, dir), open(t, dir)
	ch, _ := bustest.Subscribe(t, here, "g", "t")
	for _, c := range []struct {
		name      string
		publisher bus.Bus
		most      time.Duration
	}{{"same process", here, 2 * time.Millisecond}, {"other process", there, 20 * time.Millisecond}} {
		var took []time.Duration
		for i := range 50 {
			bustest.Publish(t, c.publisher, "t", bustest.Keyed("k", strconv.Itoa(i)))
			published := time.Now()
			bustest.Expect(t, ch, strconv.Itoa(i))
			took = append(took, time.Since(published))
		}
		if p50 := median(took); p50 > c.most {
			t.Errorf("%s: p50 is %v after Publish returned, want at most %v", c.name, p50, c.most)
		} else {
			t.Logf("%s: p50 %v", c.name, p50)
		}
	}
}

func TestNoticesThatNobodyHearsDoNotGrow(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, func(tn *tuning) { tn.segmentSize = 1 << 10 })
	for i := range 100 {
		bustest.Publish(t, b, bus.TopicBuildRequested, bustest.Keyed("k", fmt.Sprint(i)))
		bustest.Publish(t, b, bus.TopicCommands, bustest.Keyed("k", fmt.Sprint(i)))
	}
	if n := len(segmentsOf(t, dir, bus.TopicBuildRequested)); n > unheardSegments+1 {
		t.Errorf("%d segments of build-requested are left", n)
	}
	if n := len(segmentsOf(t, dir, bus.TopicCommands)); n < 10 {
		t.Errorf("%d segments of commands are left, though their group may still come", n)
	}
}
