// Package kafka is the transport on Apache Kafka, or what speaks its protocol from version 2.8 on, such as Redpanda.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/rcrowley/go-metrics"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/delivery"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func init() {
	// sarama measures itself whether anybody looks or not: that costs on each request, and the clock of its meters never ends.
	metrics.UseNilMetrics = true
}

const (
	// publishTime is how long a publish may take, and so how long a request waits before it is told that Kafka is away.
	publishTime = 5 * time.Second
	// maxRecord is the largest record, or batch of them, with its headers.
	maxRecord = bus.MaxMessageBytes + 2*bus.PoisonHeadroom
)

// tuning is what tests change.
type tuning struct {
	delivery.Limits
	trimInterval time.Duration
	sessionTime  time.Duration // after which a process that is not heard of loses its partitions
}

func defaultTuning() tuning {
	return tuning{
		Limits:       delivery.DefaultLimits(),
		trimInterval: time.Minute,
		sessionTime:  8 * time.Second,
	}
}

// kafkaBus keeps a topic of the bus as a topic of Kafka, and a key in one of its partitions. The members of a consumer group on a topic,
// one for each process, are Kafka's group <group>/<topic>: one for all topics would be rebalanced on each of them.
type kafkaBus struct {
	brokers  []string
	owner    string
	logger   *slog.Logger
	tuning   tuning
	ctx      context.Context // ends with the bus
	cancel   context.CancelFunc
	client   sarama.Client // of the producer
	producer sarama.SyncProducer
	admin    sarama.ClusterAdmin
	lookUps  sarama.Client // of admin: what it asks for does not delay publishes

	mu          sync.RWMutex
	closed      bool
	topics      map[string]*topic
	subscribers delivery.Subscribers[int64]
	publishes   sync.WaitGroup

	making sync.Mutex // who makes a topic, joins a group or leaves it
}

// Open connects to the cluster that some of its brokers, each host:port, tell of. Owner names this process among those that read: a new one
// with the name of a dead one has at once the partitions that it held (KIP-345); two live ones must never share a name. Empty: no name.
func Open(ctx context.Context, brokers []string, owner string, logger *slog.Logger) (bus.Bus, error) {
	return open(ctx, brokers, owner, logger, defaultTuning())
}

func open(ctx context.Context, brokers []string, owner string, logger *slog.Logger, tn tuning) (_ *kafkaBus, err error) {
	if len(brokers) == 0 {
		return nil, fault.New(fault.Invalid, "KAFKA_BROKERS is not set: QUEUE_BACKEND=kafka needs it, such as host:9092")
	}
	b := &kafkaBus{brokers: brokers, owner: owner, logger: logger, tuning: tn, topics: map[string]*topic{}}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(fault.New(fault.Unavailable, "Kafka does not answer at %s: start it, or correct KAFKA_BROKERS: %w", strings.Join(brokers, ", "), err), b.disconnect())
		}
	}()
	if b.client, err = sarama.NewClient(brokers, producerConfig()); err != nil {
		return nil, err
	}
	if b.producer, err = sarama.NewSyncProducerFromClient(b.client); err != nil {
		return nil, err
	}
	full := config()
	full.Metadata.Full = true // without, it cannot look for the controller before it knows a topic
	if b.lookUps, err = sarama.NewClient(brokers, full); err != nil {
		return nil, err
	}
	if b.admin, err = sarama.NewClusterAdminFromClient(b.lookUps); err != nil {
		return nil, err
	}
	_, err = b.topic(topicProbe) // so that Check need not wait for it
	return b, err
}

// config is what all connections share.
func config() *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = "refinery"
	c.Version = sarama.V2_8_0_0
	c.Net.DialTimeout = 2 * time.Second
	c.Net.ReadTimeout = 6 * time.Second // longer than a member of a group waits for the others to join
	c.Net.WriteTimeout = 2 * time.Second
	c.Metadata.Full = false
	c.Metadata.AllowAutoTopicCreation = false
	return c
}

func producerConfig() *sarama.Config {
	c := config()
	c.Net.ReadTimeout = publishTime
	// sarama looks for Kafka for half a minute before an attempt has failed: after three of them its circuit breaker would refuse a
	// partition's messages for ten more seconds. Who publishes does not wait so long.
	c.Metadata.Retry.Max = 120
	c.Metadata.Retry.Backoff = retryInterval
	c.Producer.Retry.Max = 20
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Idempotent = true // and so a retry neither doubles nor reorders
	c.Net.MaxOpenRequests = 1
	c.Producer.Timeout = publishTime
	c.Producer.MaxMessageBytes = maxRecord
	c.Producer.Partitioner = sarama.NewHashPartitioner
	c.Producer.Return.Successes = true
	return c
}

func (b *kafkaBus) Publish(topicName string, messages ...*message.Message) error {
	return b.publish(b.ctx, topicName, messages...)
}

// publish returns after publishTime at the latest; then the messages may still be stored.
func (b *kafkaBus) publish(ctx context.Context, topicName string, messages ...*message.Message) error {
	t, err := b.topic(topicName)
	if err != nil {
		return err
	}
	if len(messages) == 0 {
		return nil
	}
	records := make([]*sarama.ProducerMessage, len(messages))
	bytes := 0
	for i, m := range messages {
		if err := bus.CheckMessage(topicName, m); err != nil {
			return err
		}
		if records[i], err = marshaler.Marshal(topicName, m); err != nil {
			return fmt.Errorf("bus: %w", err)
		}
		bytes += records[i].ByteSize(2)
	}
	done, err := b.produce(records)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("bus: publish to %s: %w", topicName, first(err))
	}
	t.saw(len(records), bytes)
	return nil
}

// produce hands records to the producer, which sends together what many goroutines hand it while a request is under way.
func (b *kafkaBus) produce(records []*sarama.ProducerMessage) (<-chan error, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return nil, bus.ErrClosed
	}
	done := make(chan error, 1)
	b.publishes.Go(func() {
		if len(records) == 1 {
			_, _, err := b.producer.SendMessage(records[0])
			done <- err
			return
		}
		done <- b.producer.SendMessages(records)
	})
	return done, nil
}

// first says why messages failed; sarama says only how many.
func first(err error) error {
	if many, ok := errors.AsType[sarama.ProducerErrors](err); ok {
		return fmt.Errorf("%d messages failed, the first: %w", len(many), many[0].Err)
	}
	return err
}

func (b *kafkaBus) Subscriber(group string) (message.Subscriber, error) {
	return b.subscribers.Add(b.ctx, group, func(topicName string) (*delivery.Queue[int64], func(), error) {
		t, err := b.topic(topicName)
		if err != nil {
			return nil, nil, err
		}
		g, err := b.join(t, group)
		if err != nil {
			return nil, nil, fmt.Errorf("bus: subscribe to %s: %w", topicName, err)
		}
		return g.queue, func() { b.leave(g) }, nil
	})
}

// Check publishes to a topic of its own, as commands are published.
func (b *kafkaBus) Check(ctx context.Context) error {
	return b.publish(ctx, topicProbe, message.NewMessage("", nil))
}

func (b *kafkaBus) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()

	errs := []error{b.subscribers.Close()}
	done := make(chan error, 1)
	go func() {
		b.publishes.Wait()
		done <- b.disconnect()
	}()
	select {
	case err := <-done:
		errs = append(errs, err)
	case <-time.After(publishTime): // by then every Publish has returned
		errs = append(errs, errors.New("bus: Kafka does not answer: messages whose Publish failed were not given up in time"))
	}
	return errors.Join(errs...)
}

// disconnect frees what open took.
func (b *kafkaBus) disconnect() error {
	b.cancel()
	var errs []error
	if b.producer != nil {
		errs = append(errs, b.producer.Close())
	}
	for _, c := range []sarama.Client{b.client, b.lookUps} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
