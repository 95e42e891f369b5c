package redis

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/delivery"
)

const (
	// blockTime is how long a read waits for entries, and so how long shards that were taken meanwhile wait.
	blockTime = 100 * time.Millisecond
	// A read asks for at most so many entries of all shards together. It is more with each read that was full and brought little, and less
	// after one that brought more than readBytes.
	leastRead = 4
	firstRead = 16
	mostRead  = 128
	readBytes = 4 << 20
)

// reader waits for entries of all shards at once, on a connection of its own.
type reader struct {
	c        *consumer
	client   *goredis.Client
	ctx      context.Context
	cancel   context.CancelFunc
	requests chan []*shard
	replies  chan []batch
	stopped  chan struct{}

	most int // entries of a read
	turn int // where the next read begins that is not of all shards
}

// batch is what was read of a shard.
type batch struct {
	shard   *shard
	entries []*delivery.Entry[string]
}

func newReader(c *consumer) *reader {
	o := *c.bus.options
	o.PoolSize = 1
	r := &reader{
		c: c, client: goredis.NewClient(&o), requests: make(chan []*shard, 1), replies: make(chan []batch, 1), stopped: make(chan struct{}),
		most: firstRead,
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// read asks for what follows in shards; one reply comes for each call.
func (r *reader) read(shards []*shard) {
	r.requests <- shards
}

func (r *reader) close() {
	r.cancel()
	_ = r.client.Close() // which ends a read that waits
	close(r.requests)
	<-r.stopped
}

func (r *reader) run() {
	defer close(r.stopped)
	failing := false
	for shards := range r.requests {
		got, err := r.once(shards)
		if err == nil && failing {
			failing = false
			r.c.logger.Info("Redis can be read again")
		}
		if err != nil && r.ctx.Err() == nil {
			if !failing {
				failing = true
				r.c.logger.Error("Redis cannot be read; trying again", "error", err)
			}
			select {
			case <-time.After(errorInterval):
			case <-r.ctx.Done():
			}
		}
		r.replies <- got
	}
}

func (r *reader) once(shards []*shard) ([]batch, error) {
	width := min(len(shards), r.most)
	count := r.most / width
	args := &goredis.XReadArgs{Count: int64(count), Block: blockTime}
	if width < len(shards) {
		args.Block = -1 // none: other shards may have something
	}
	ids := make([]string, 0, width)
	by := make(map[string]*shard, width)
	for i := range width {
		s := shards[(r.turn+i)%len(shards)]
		name := r.c.streams[s.number]
		by[name] = s
		args.Streams = append(args.Streams, name)
		ids = append(ids, s.read)
	}
	r.turn = (r.turn + width) % len(shards)
	args.Streams = append(args.Streams, ids...)
	streams, err := r.client.XRead(r.ctx, args).Result()
	if err != nil && !errors.Is(err, goredis.Nil) {
		return nil, err
	}
	var all []batch
	size, full := 0, false
	for _, stream := range streams {
		b := batch{shard: by[stream.Stream]}
		for _, m := range stream.Messages {
			e, err := r.entry(stream.Stream, m)
			if err != nil {
				return all, err
			}
			size += e.Size
			b.entries = append(b.entries, e)
		}
		full = full || len(b.entries) == count
		all = append(all, b)
	}
	switch {
	case size > readBytes:
		r.most = max(leastRead, r.most/8)
	case full && size < readBytes/4, width < len(shards) && size == 0:
		r.most = min(mostRead, 2*r.most)
	}
	return all, nil
}

// record is a message as it was stored.
type record struct{ stored *message.Message }

// Message is delivery.Record's.
func (r record) Message() *message.Message {
	m := message.NewMessage(r.stored.UUID, bytes.Clone(r.stored.Payload))
	m.Metadata = maps.Clone(r.stored.Metadata)
	return m
}

// entry makes what is delivered of an entry of a stream: nothing of one that no bus has written, which goes to the poison topic.
func (r *reader) entry(stream string, m goredis.XMessage) (*delivery.Entry[string], error) {
	e := &delivery.Entry[string]{Pos: m.ID, Time: published(m.ID)}
	for _, v := range m.Values {
		e.Size += len(v.(string))
	}
	decoded, err := marshaller.Unmarshal(m.Values)
	if err == nil {
		e.Record, e.Key = record{decoded}, decoded.Metadata.Get(bus.KeyMetadata)
		return e, nil
	}
	raw, jsonErr := json.Marshal(m.Values)
	if jsonErr != nil {
		return nil, jsonErr
	}
	where := stream + "/" + m.ID
	if err := r.c.bus.Publish(bus.TopicPoison, bus.NewForeign(r.c.topic, where, raw, err)); err != nil {
		return nil, fmt.Errorf("%s is not a message, and cannot be put onto the poison topic: %w", where, err)
	}
	r.c.logger.Error("An entry of Redis is not a message: it was put onto the poison topic", "entry", where, "error", err.Error()) // the error itself would show a stack
	return e, nil
}

// published reads the time from an entry's id.
func published(id string) time.Time {
	ms, _, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(n)
}
