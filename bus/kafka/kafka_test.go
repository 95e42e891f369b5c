package kafka

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	watermillkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

func newTopic() string { return "t-" + watermill.NewShortUUID() }

// Messages of full size in one call are more than a batch may hold.
func TestLargeMessagesAtOnce(t *testing.T) {
	b, name := openHere(t, bustest.Quiet(t)), newTopic()
	var ms []*message.Message
	for i := range 4 {
		ms = append(ms, bus.NewMessage(strconv.Itoa(i), "k", make([]byte, bus.MaxMessageBytes-100)))
	}
	bustest.Publish(t, b, name, ms...)
	ch, _ := bustest.Subscribe(t, b, "g", name)
	for i := range ms {
		m := bustest.Receive(t, ch)
		if m.UUID != strconv.Itoa(i) {
			t.Fatalf("received %s, want %d", m.UUID, i)
		}
		m.Ack()
	}
}

// What every group has passed is removed, and nothing else: neither what one of them has not acknowledged nor what it has never read.
func TestTrim(t *testing.T) {
	b, name := openHere(t, bustest.Quiet(t), func(tn *tuning) { tn.trimInterval = 100 * time.Millisecond }), newTopic()
	fast, _ := bustest.Subscribe(t, b, "fast", name)
	slow, sub := bustest.Subscribe(t, b, "slow", name)
	const n = 50
	left := func() (records int64) {
		topics := map[string]*topic{name: b.topics[name]}
		oldest, err := b.ends(topics, sarama.OffsetOldest)
		if err != nil {
			t.Fatal(err)
		}
		newest, err := b.ends(topics, sarama.OffsetNewest)
		if err != nil {
			t.Fatal(err)
		}
		for p, first := range oldest[name] {
			records += newest[name][p] - first
		}
		return records
	}
	for i := range n {
		bustest.Publish(t, b, name, bustest.Keyed(strconv.Itoa(i), strconv.Itoa(i)))
		bustest.Receive(t, fast).Ack()
	}
	bustest.Receive(t, slow)
	time.Sleep(time.Second)
	if l := left(); l != n {
		t.Fatalf("%d of %d are left, though a group has passed none", l, n)
	}
	if err := sub.Close(); err != nil { // a group that is away counts
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if l := left(); l != n {
		t.Fatalf("%d of %d are left, though a group has passed none", l, n)
	}
	slow, _ = bustest.Subscribe(t, b, "slow", name)
	for range n {
		bustest.Receive(t, slow).Ack()
	}
	bustest.Eventually(t, "all removed", func() bool { return left() == 0 })
	bustest.Publish(t, b, name, bustest.Keyed("k", "on"))
	bustest.Expect(t, fast, "on")
	bustest.Expect(t, slow, "on")
	late, _ := bustest.Subscribe(t, b, "late", name) // its first offset is not the partition's first
	bustest.Publish(t, b, name, bustest.Keyed("k", "later"))
	m := bustest.Receive(t, late)
	if string(m.Payload) == "on" { // not removed yet
		m.Ack()
		m = bustest.Receive(t, late)
	}
	if m.Ack(); string(m.Payload) != "later" {
		t.Errorf("received %q", m.Payload)
	}
}

// A handler may take longer than the time after which a process that is not heard of loses its partitions. When others join, its messages
// end first, and then come again, to whoever has their partition.
func TestSlowHandler(t *testing.T) {
	name := newTopic()
	change := func(tn *tuning) { tn.sessionTime = 6 * time.Second }
	here, there := openHere(t, bustest.Quiet(t), change), openHere(t, bustest.Quiet(t), change)
	ch, _ := bustest.Subscribe(t, here, "g", name)
	const n = 64
	held := map[string]*message.Message{}
	for i := range n {
		bustest.Publish(t, here, name, bustest.Keyed(strconv.Itoa(i), "slow"))
		m := bustest.Receive(t, ch)
		held[m.UUID] = m
	}
	bustest.ExpectNone(t, ch, 7*time.Second)
	for id, m := range held {
		if m.Context().Err() != nil {
			t.Fatalf("%s ended", id)
		}
	}
	other, _ := bustest.Subscribe(t, there, "g", name)
	moved, stayed := 0, 0
	for wait := time.After(5 * time.Second); wait != nil; {
		var m *message.Message
		select {
		case m = <-other:
			moved++
		case m = <-ch:
			stayed++
		case <-wait:
			wait = nil
			continue
		}
		if held[m.UUID].Context().Err() == nil {
			t.Fatalf("%s runs twice at once", m.UUID)
		}
		held[m.UUID].Ack() // without effect
		m.Ack()
	}
	if moved == 0 || stayed == 0 || moved+stayed != n {
		t.Errorf("of %d slow messages %d moved and %d stayed", n, moved, stayed)
	}
}

// A topic that is there is used as it is, and a warning says what is wrong with it.
func TestExistingTopic(t *testing.T) {
	name, log := newTopic(), &bustest.Log{}
	b := openHere(t, log)
	week := "604800000"
	if err := b.admin.CreateTopic(name, &sarama.TopicDetail{NumPartitions: 2, ReplicationFactor: 1, ConfigEntries: map[string]*string{"retention.ms": &week}}, false); err != nil {
		t.Fatal(err)
	}
	bustest.Publish(t, b, name, bustest.Keyed("k", "1"))
	ch, _ := bustest.Subscribe(t, b, "g", name)
	bustest.Expect(t, ch, "1")
	for _, want := range []string{"partitions=2 recommended=16", "setting=retention.ms is=604800000", "setting=max.message.bytes"} {
		if log.Count(want) != 1 {
			t.Errorf("the log does not say %s once:\n%s", want, log)
		}
	}
	quiet := openHere(t, bustest.Quiet(t)) // one of ours is as it should be
	ours := newTopic()
	bustest.Publish(t, b, ours, bustest.Keyed("k", "1"))
	bustest.Publish(t, quiet, ours, bustest.Keyed("k", "2"))
	for topic, n := range map[string]int{bus.TopicCommands: 64, bus.TopicPoison: 16} {
		bustest.Publish(t, b, topic, bustest.Keyed("k", "1"))
		if got := len(b.topics[topic].partitions); got != n {
			t.Errorf("%s has %d partitions, want %d", topic, got, n)
		}
	}
}

// Records of several kinds that no bus has written end in the poison topic, and stop nothing.
func TestForeignRecords(t *testing.T) {
	b, name := openHere(t, &bustest.Log{}), newTopic()
	bustest.Publish(t, b, name, bustest.Keyed("k", "1"))
	uuid := sarama.RecordHeader{Key: []byte(watermillkafka.UUIDHeaderKey), Value: []byte("u")}
	broker := testserver.Kafka(t)
	foreign(t, broker, name, nil, nil)
	foreign(t, broker, name, []sarama.RecordHeader{uuid, {Key: []byte("a"), Value: []byte{0xff}}}, []byte("x"))
	foreign(t, broker, name, []sarama.RecordHeader{uuid}, make([]byte, bus.MaxMessageBytes+1))
	poison, _ := bustest.Subscribe(t, b, "watch-"+name, bus.TopicPoison)
	ch, _ := bustest.Subscribe(t, b, "g", name)
	bustest.Expect(t, ch, "1")
	for seen := 0; seen < 3; {
		m := bustest.Receive(t, poison)
		if strings.Contains(m.Metadata.Get("reason_poisoned"), name) {
			seen++
		}
		m.Ack()
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, publishers := range []int{1, 64} {
		b.Run(strconv.Itoa(publishers), func(b *testing.B) {
			t, name := openHere(b, &bustest.Log{}), newTopic()
			b.SetParallelism(publishers)
			bustest.Publish(b, t, name, bustest.Keyed("k", "first"))
			payload := make([]byte, 500)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					id := watermill.NewUUID()
					if err := t.Publish(name, bus.NewMessage(id, id, payload)); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
