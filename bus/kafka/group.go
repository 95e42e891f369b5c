package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/delivery"
)

const (
	heartbeat = 500 * time.Millisecond // and so about how long it takes until others hear of a new member
	// offsetInterval is how often, at most, offsets are committed. After a crash what was acknowledged since comes again.
	offsetInterval = 100 * time.Millisecond
	// retryInterval is the pause between attempts to reach Kafka.
	retryInterval = 250 * time.Millisecond
)

// group is this process's membership of a consumer group on a topic. Partitions come and go; one goroutine owns what was read of them and
// talks to the subscriptions, and one for each partition feeds it.
//
// Two processes never handle a key at once while Kafka answers: a partition is handed on after this process has answered the rebalance,
// which it does when the contexts of its messages have ended. One that Kafka does not hear of for
// sessionTime loses its partitions; it finds out by itself within about the same time, as each heartbeat must be answered in that of
// Net.ReadTimeout. A process that is stopped and resumed may for a moment handle what another has by now; that the log of events refuses.
type group struct {
	bus     *kafkaBus
	topic   *topic
	name    string
	logger  *slog.Logger
	members int // subscriptions; guarded by kafkaBus.making
	kafka   sarama.ConsumerGroup
	cancel  context.CancelFunc
	stopped chan struct{}

	queue   *delivery.Queue[int64]
	begun   chan *partition
	arrived chan arrival
	ending  chan *partition
	asked   chan chan bus.Stats
	ended   chan struct{}           // no more of these come
	has     map[*partition]struct{} // owned by serve

	trims atomic.Bool // this process trims the topic for all
	down  bool        // owned by consume
}

// partition is one that this process reads.
type partition struct {
	id       int32
	session  sarama.ConsumerGroupSession
	window   *delivery.Window[int64]
	marked   int64         // the next offset, as it was marked to be committed
	released chan struct{} // closed when no subscriber has anything of it
}

// arrival is a record that was read.
type arrival struct {
	partition *partition
	entry     *delivery.Entry[int64]
}

// join makes this process a member of a group on t, or counts one more subscription.
func (b *kafkaBus) join(t *topic, name string) (*group, error) {
	b.making.Lock()
	defer b.making.Unlock()
	g := t.groups[name]
	if g == nil {
		client, err := sarama.NewConsumerGroup(b.brokers, groupID(name, t.name), b.consumerConfig(t.name))
		if err != nil {
			return nil, err
		}
		g = &group{
			bus: b, topic: t, name: name, logger: b.logger.With("topic", t.name, "group", name), kafka: client, stopped: make(chan struct{}),
			queue: delivery.NewQueue[int64](b.tuning.Limits), begun: make(chan *partition), arrived: make(chan arrival),
			ending: make(chan *partition), asked: make(chan chan bus.Stats), ended: make(chan struct{}), has: map[*partition]struct{}{},
		}
		var ctx context.Context
		ctx, g.cancel = context.WithCancel(context.Background())
		go g.run(ctx)
		t.groups[name] = g
	}
	g.members++
	return g, nil
}

// leave ends the membership with its last subscription.
func (b *kafkaBus) leave(g *group) {
	b.making.Lock()
	defer b.making.Unlock()
	if g.members--; g.members > 0 {
		return
	}
	delete(g.topic.groups, g.name)
	g.cancel()
	<-g.stopped
}

func (b *kafkaBus) consumerConfig(topic string) *sarama.Config {
	c := config()
	c.Metadata.Retry.Max = 1 // heartbeats are tried so often, too
	c.ChannelBufferSize = 16 // for each partition; the queue has the rest
	c.Consumer.Fetch.Default = 256 << 10
	c.Consumer.Fetch.MaxBytes = 4 << 20
	// Kafka answers as soon as there is something. So long at most a commit, or a partition that was full, waits for an idle fetch.
	c.Consumer.MaxWaitTime = 100 * time.Millisecond
	c.Consumer.Retry.Backoff = retryInterval
	c.Consumer.Return.Errors = true
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Offsets.AutoCommit.Interval = offsetInterval
	// Not the cooperative one, by which partitions that stay would not be interrupted: with it a key was once seen with two processes.
	c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategySticky()}
	if bus.ReadByOne(topic) {
		c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{one{}}
	}
	c.Consumer.Group.Rebalance.Timeout = 5 * time.Second
	c.Consumer.Group.Rebalance.Retry.Backoff = retryInterval
	c.Consumer.Group.InstanceId = b.owner
	c.Consumer.Group.Session.Timeout = b.tuning.sessionTime
	c.Consumer.Group.Heartbeat.Interval = heartbeat
	return c
}

// one is a sarama.BalanceStrategy: the member whose id comes first has all partitions, and others stand by. Ids begin with the names of
// processes, so one that starts again has them again.
type one struct{}

func (one) Name() string { return "one" }

func (one) Plan(members map[string]sarama.ConsumerGroupMemberMetadata, topics map[string][]int32) (sarama.BalanceStrategyPlan, error) {
	first := slices.Min(slices.Collect(maps.Keys(members)))
	plan := sarama.BalanceStrategyPlan{}
	for topic, partitions := range topics {
		plan.Add(first, topic, partitions...)
	}
	return plan, nil
}

func (one) AssignmentData(string, map[string][]int32, int32) ([]byte, error) { return nil, nil }

func (g *group) run(ctx context.Context) {
	defer close(g.stopped)
	var parts sync.WaitGroup
	parts.Go(g.serve)
	parts.Go(g.report)
	parts.Go(func() { g.trimAll(ctx) })
	g.consume(ctx)
	err := g.kafka.Close()
	if owner := g.bus.owner; owner != "" && err == nil && !g.down { // one with a name is expected back, until Kafka is told
		_, err = g.bus.admin.RemoveMemberFromConsumerGroup(groupID(g.name, g.topic.name), []string{owner})
	}
	if err != nil { // it has told of errors before; nothing is lost but a quick handover
		g.logger.Warn("Kafka was not told that a consumer left", "error", err)
	}
	close(g.ended)
	parts.Wait()
}

// consume keeps the membership up until ctx ends.
func (g *group) consume(ctx context.Context) {
	for {
		err := g.kafka.Consume(ctx, []string{g.topic.name}, g)
		if ctx.Err() != nil {
			return
		}
		if err == nil { // others have come or gone
			continue
		}
		if !g.down {
			g.down = true
			g.logger.Warn("Consumer has lost Kafka; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryInterval):
		}
	}
}

// report logs what goes wrong behind the membership. The same is said once a minute.
func (g *group) report() {
	said := map[string]time.Time{}
	for err := range g.kafka.Errors() {
		if text := err.Error(); time.Since(said[text]) > time.Minute {
			said[text] = time.Now()
			g.logger.Warn("Consumer has trouble with Kafka; trying again", "error", text)
		}
	}
}

// trimAll removes, at intervals, what all groups have passed.
func (g *group) trimAll(ctx context.Context) {
	tick := time.NewTicker(g.bus.tuning.trimInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !g.trims.Load() {
			continue
		}
		if err := g.bus.trim(g.topic); err != nil {
			g.logger.Warn("Kafka topic could not be trimmed; trying again", "error", err)
		}
	}
}

// Setup is sarama.ConsumerGroupHandler's: the membership stands.
func (g *group) Setup(sarama.ConsumerGroupSession) error {
	if g.down {
		g.down = false
		g.logger.Info("Consumer has Kafka again")
	}
	return nil
}

// Cleanup is sarama.ConsumerGroupHandler's.
func (g *group) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim is sarama.ConsumerGroupHandler's: reads a partition until it goes to another process or the session ends.
func (g *group) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	next := max(claim.InitialOffset(), 0) // negative: the group has no offset yet, and begins at the oldest
	p := &partition{
		id: claim.Partition(), session: session, window: delivery.NewWindow(next - 1), marked: next, released: make(chan struct{}),
	}
	session.MarkOffset(g.topic.name, p.id, next, "") // so that trim knows of the group
	if p.id == 0 {
		g.trims.Store(true)
		defer g.trims.Store(false)
	}
	g.begun <- p
	g.feed(p, claim)
	g.ending <- p
	<-p.released
	return nil
}

func (g *group) feed(p *partition, claim sarama.ConsumerGroupClaim) {
	for {
		select {
		case <-p.session.Context().Done(): // the channel may stay open until Kafka answers
			return
		case rec, open := <-claim.Messages():
			if !open {
				return
			}
			e, err := g.entry(p, rec)
			if err != nil {
				return
			}
			select {
			case g.arrived <- arrival{p, e}:
			case <-p.session.Context().Done():
				return
			}
		}
	}
}

// entry makes an entry of a record. One that is not a message goes to the poison topic first; the error says that the session ended
// before it did.
func (g *group) entry(p *partition, rec *sarama.ConsumerMessage) (*delivery.Entry[int64], error) {
	e := &delivery.Entry[int64]{Pos: rec.Offset, Time: rec.Timestamp, Size: len(rec.Value)}
	m, err := decode(rec)
	if err == nil {
		for k, v := range m.stored.Metadata {
			e.Size += len(k) + len(v)
		}
		e.Record, e.Key = m, m.stored.Metadata.Get(bus.KeyMetadata)
		g.topic.saw(1, e.Size)
		return e, nil
	}
	foreign := bus.NewForeign(rec.Topic, fmt.Sprintf("%s, partition %d, offset %d", rec.Topic, rec.Partition, rec.Offset), rec.Value, err)
	for {
		failed := g.bus.publish(p.session.Context(), bus.TopicPoison, foreign)
		if failed == nil {
			g.logger.Error("Kafka topic holds what is not a message; it is in the poison topic now",
				"partition", rec.Partition, "offset", rec.Offset, "message_uuid", foreign.UUID, "error", err)
			return e, nil
		}
		g.logger.Warn("What is not a message could not be put into the poison topic; trying again", "error", failed)
		select {
		case <-p.session.Context().Done():
			return nil, failed
		case <-time.After(retryInterval):
		}
	}
}

// serve hands out what was read, until ended.
func (g *group) serve() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		arrived := g.arrived
		if !g.queue.Room() {
			arrived = nil
		}
		timer.Stop()
		if due := g.queue.Due(); !due.IsZero() {
			timer.Reset(time.Until(due))
		}
		select {
		case <-g.ended:
			return
		case p := <-g.begun:
			g.has[p] = struct{}{}
		case a := <-arrived:
			g.queue.Add(a.partition.window, a.entry)
			if a.entry.Record == nil {
				g.mark()
			}
		case g.queue.Ready() <- g.queue.Head():
			g.queue.Handed()
		case r := <-g.queue.Results():
			g.queue.SettleAll(r)
			g.mark()
		case p := <-g.ending:
			g.end(p)
		case reply := <-g.asked:
			reply <- g.look()
		case now := <-timer.C:
			g.queue.Again(now)
		}
	}
}

// mark has committed what was passed.
func (g *group) mark() {
	for p := range g.has {
		if next := p.window.Passed() + 1; next != p.marked {
			p.marked = next
			p.session.MarkOffset(g.topic.name, p.id, next, "")
		}
	}
}

// end lets p go: messages of it that are not finished end with their contexts.
func (g *group) end(p *partition) {
	g.queue.SettleWaiting() // acks of the last moment
	g.mark()
	g.queue.Drop(p.window)
	delete(g.has, p)
	close(p.released)
}

// look is what Stats tells of the group's messages here.
func (g *group) look() bus.Stats {
	s := bus.Stats{Unacked: g.queue.Unacked()}
	for p := range g.has {
		if first := p.window.First(); first != nil && (s.Oldest.IsZero() || first.Time.Before(s.Oldest)) {
			s.Oldest = first.Time
		}
	}
	return s
}

// Stats tells of the topics that this process has used. Bytes are those of messages of the mean size that this
// process has seen.
func (b *kafkaBus) Stats() ([]bus.Stats, error) {
	b.mu.RLock()
	closed, topics := b.closed, maps.Clone(b.topics)
	b.mu.RUnlock()
	if closed {
		return nil, bus.ErrClosed
	}
	delete(topics, topicProbe)
	if len(topics) == 0 {
		return nil, nil
	}
	oldest, err1 := b.ends(topics, sarama.OffsetOldest)
	newest, err2 := b.ends(topics, sarama.OffsetNewest)
	groups, err3 := b.groupsOf(topics)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("bus: look at topics: %w", err)
	}
	var all []bus.Stats
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		t := topics[name]
		behind := func(offsets map[int32]int64) (messages int64) {
			for _, p := range t.partitions {
				messages += max(0, newest[name][p]-max(offsets[p], oldest[name][p]))
			}
			return messages
		}
		if len(groups[name]) == 0 {
			all = append(all, bus.Stats{Topic: name, Bytes: t.size(behind(nil))})
		}
		for _, group := range slices.Sorted(maps.Keys(groups[name])) {
			s := b.here(t, group)
			s.Topic, s.Group, s.Bytes = name, group, t.size(behind(groups[name][group]))
			all = append(all, s)
		}
	}
	return all, nil
}

// here is what this process has of a group's messages.
func (b *kafkaBus) here(t *topic, name string) bus.Stats {
	b.making.Lock()
	g := t.groups[name]
	b.making.Unlock()
	if g == nil {
		return bus.Stats{}
	}
	reply := make(chan bus.Stats, 1)
	select {
	case g.asked <- reply:
		return <-reply
	case <-g.ended:
		return bus.Stats{}
	}
}
