package kafka

import (
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

func TestUniversal(t *testing.T) {
	bustest.Universal(t, tests.Features{GuaranteedOrder: true, Persistent: true}, func(t *testing.T) bus.Bus {
		return openHere(t, &bustest.Log{}, func(tn *tuning) { tn.MaxBackoff = tn.MinBackoff })
	})
}

func TestSuite(t *testing.T) {
	server := testserver.NewKafka(t)
	bustest.Run(t, bustest.Transport{
		Open: openAs, Address: server.Addr(), Kill: server.Kill, Start: server.Start,
		Foreign:  func(t testing.TB, topic string) { foreign(t, server.Addr(), topic, nil, []byte("who am I?")) },
		Takeover: defaultTuning().sessionTime + 3*time.Second,
		Shards:   true,
	})
}

// foreign puts a record onto a topic that no bus has written.
func foreign(t testing.TB, broker, topic string, headers []sarama.RecordHeader, value []byte) {
	t.Helper()
	p, err := sarama.NewSyncProducer([]string{broker}, producerConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: topic, Headers: headers, Value: sarama.ByteEncoder(value)}); err != nil {
		t.Fatal(err)
	}
}
