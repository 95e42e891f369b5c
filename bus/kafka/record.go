package kafka

import (
	"bytes"
	"errors"
	"slices"

	"github.com/IBM/sarama"
	watermillkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
)

// marshaler is watermill's form of a record, with a key: programs that read it by watermill-kafka understand ours. An empty key is a key,
// so that messages without one share a partition.
var marshaler = watermillkafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
	return m.Metadata.Get(bus.KeyMetadata), nil
})

// record is a stored message that a bus has written. Its payload is not changed.
type record struct{ stored *message.Message }

// Message is delivery.Record's.
func (r record) Message() *message.Message {
	m := r.stored.Copy()
	m.Payload = bytes.Clone(m.Payload)
	return m
}

// decode says why rec is not a message, if no bus has written it.
func decode(rec *sarama.ConsumerMessage) (record, error) {
	if !slices.ContainsFunc(rec.Headers, func(h *sarama.RecordHeader) bool { return string(h.Key) == watermillkafka.UUIDHeaderKey }) {
		return record{}, errors.New("it has no header " + watermillkafka.UUIDHeaderKey)
	}
	m, err := marshaler.Unmarshal(rec)
	if err != nil {
		return record{}, err
	}
	return record{m}, bus.CheckMessage(rec.Topic, m)
}
